"""Rewards: accuracy and cost of a candidate → one number."""
