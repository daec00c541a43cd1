"""PATH arguments to a list of inputs, with their sidecar captions."""
