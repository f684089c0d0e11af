"""Data sets: generators for the organisms, loaders for files and the hub, and evaluation tasks made of token rows."""
