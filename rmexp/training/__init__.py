"""Training: preference pairs to the folder of a reward model, which evaluation reads.

It knows data, models, scoring (a reference is a column of the store; a model is read as evaluation
reads it), tracking, and the colours of stats; no benchmark and no evaluation.
"""
