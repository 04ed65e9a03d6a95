"""Judges: models that compare responses, instead of giving each a reward.

They know models, and scoring for its store and its forward passes; no benchmark.
"""
