"""WebDataset tars with their index: planned, written, read."""
