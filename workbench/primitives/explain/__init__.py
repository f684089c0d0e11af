"""Explaining an output: the residual graph, attribution of its edges, circuits, path patching."""
