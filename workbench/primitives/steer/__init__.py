"""Steering: directions in the stream, and adding multiples of them."""
