"""Evaluation, and what is told of finished ones; knows everything below training."""
