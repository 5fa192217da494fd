"""Networks: one file a family, depths as data."""
