"""Prompts to video."""
