"""Checkpoints as tensors: reading them, which channel stands where, norms, subspaces of updates, pruning."""
