"""Tracking: all of MLflow, and what was tracked as values; knows the ground alone."""
