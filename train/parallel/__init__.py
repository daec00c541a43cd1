"""Ranks: process groups, collectives, FSDP2, device memory."""
