"""Scores: metrics of logits, answers, heads, units and channels, and the statistics of them."""
