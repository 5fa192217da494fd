"""Data sets: sources of images, splits, and batches made on the device."""
