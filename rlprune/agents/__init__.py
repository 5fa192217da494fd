"""Agents: they decide how much of each channel group goes."""
