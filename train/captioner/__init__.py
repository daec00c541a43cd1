"""Training of the captioner."""
