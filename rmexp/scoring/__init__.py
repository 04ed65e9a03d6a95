"""Scoring: each unique response once, kept in the store; knows models."""
