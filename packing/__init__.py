"""Captioned clips -> packs: buckets and shards on the way to disk, plan and loader on the way to the model.

buckets   which (frames, height, width, fps) a clip is written at
grid      pixels -> latents -> tokens, integer arithmetic only
shards    writes tars and their parquet index; reader reads them back
plan      which samples share a pack, and which rank reads which pack at which step
batch     a pack as tensors; loader yields them, rank by rank, resumable
"""
