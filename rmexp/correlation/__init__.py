"""Correlation of reward models with policies and with each other; knows stats and tracking."""
