"""A paper's grid of runs: what is stored, resumed, joined and summed up by seed, and the helpers that make claims of
it.
"""
