"""Packs to models: the trainer, the diffusion transformer, captioner and compressor training, sampling."""
