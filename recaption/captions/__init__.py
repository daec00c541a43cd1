"""Caption texts: normalization and faults, caption sets, windows, caption mixture, repeated captions, metrics."""
