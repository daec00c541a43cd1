"""The training loop: trainer, optimizer, EMA, metrics."""
