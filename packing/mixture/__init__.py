"""The samples of an epoch: sampling weights, temporal crops (segments), token dropping, and the RNG behind them."""
