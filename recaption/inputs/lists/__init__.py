"""Lists of inputs: text files, and tables with spans, captions and metadata."""
