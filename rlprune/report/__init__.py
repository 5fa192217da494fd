"""Reports on any set of runs: collect, compare, tabulate, draw, write."""
