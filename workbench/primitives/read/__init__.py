"""Reading a model: activations in memory and on disk, reductions of them, lenses, predictions, attention patterns."""
