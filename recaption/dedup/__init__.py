"""Near copies and semantic duplicates."""
