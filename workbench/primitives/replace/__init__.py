"""Replacing activations: ablation, its benches and curves, exact sweeps, two checkpoints beside each other."""
