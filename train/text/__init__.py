"""Frozen text encoders of the generator."""
