"""Training: the loop, the optimizer, checkpoints, sample order, metrics log and ranks."""
