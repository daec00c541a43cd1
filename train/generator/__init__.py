"""Training of the video generator (the diffusion transformer)."""
