"""Reward models and policies: folders to weights to numbers; knows the ground alone."""
