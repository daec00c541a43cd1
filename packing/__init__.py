"""Captioned clips to packs: buckets, shards, the packing plan, the loader."""
