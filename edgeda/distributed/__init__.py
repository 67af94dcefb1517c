"""A run on several devices: one process for each, all computing the same step on a part of the batch."""
