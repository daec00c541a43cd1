"""What an epoch shows of the samples: repeats, segments, token dropping, and the random numbers behind them."""
