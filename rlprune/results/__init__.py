"""Records of a run, tables, plots and reports."""
