"""Importance criteria: a network and its groups → a score for every unit."""
