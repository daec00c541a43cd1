"""Scores of clips and the filters over them."""
