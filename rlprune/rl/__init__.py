"""Reinforcement learning at the size that pruning needs: replay, actor and critic, noise, and the episode that they learn from."""
