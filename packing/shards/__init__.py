"""WebDataset shards and their index: plan, write, read."""
