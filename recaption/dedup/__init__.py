"""Near-duplicate and semantic duplicate clips."""
