"""Checkpoints: step folders of safetensors, written whole or not at all."""
