"""A reward for each row of a data set of any size, and the rows that are chosen by it."""
