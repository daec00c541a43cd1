"""The commands: `recaption X` is X.py or X/ in this folder."""
