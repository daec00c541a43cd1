"""Checkpoints: step folders of safetensors files, written atomically."""
