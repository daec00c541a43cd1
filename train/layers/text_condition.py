"""Null captions of classifier-free guidance, put in place of dropped texts."""

from __future__ import annotations

NULL_TOKENS = 1
