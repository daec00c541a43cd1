"""Where every video and every second of it went, and whether the files agree."""
