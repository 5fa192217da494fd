"""Measuring what a look-up table for latency needs: the calls of a network, their time over channel counts, whole networks."""
