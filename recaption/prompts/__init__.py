"""Prompt expansion: rewrites user prompts in the style of the training captions."""
