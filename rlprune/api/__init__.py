"""Pruning from Python: a network, its data, and the functions that train and measure it."""
