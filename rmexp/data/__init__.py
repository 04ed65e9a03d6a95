"""Data as read, for benchmarks and training alike; knows the ground alone."""
