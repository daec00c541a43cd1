"""Caption texts: cleaning, sets, windows, mixture, repeated texts, metrics."""
