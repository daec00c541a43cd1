"""Text encoders of the generator."""
