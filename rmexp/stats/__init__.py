"""Statistics of outcomes and their figures, all pure; knows the ground alone."""
