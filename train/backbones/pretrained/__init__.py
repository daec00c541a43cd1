"""Pretrained networks of other libraries as backbones over packs."""
