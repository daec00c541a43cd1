"""Timestep shift by resolution: larger samples are trained and sampled at more noise.

    shifted(0.5, shift_of("sqrt_tokens", 4096, (4, 32, 32), shift_tokens=1024))      # a = 2: t = 2/3

Under t' = a t / (1 + (a - 1) t), the noise-to-signal ratio of rectified flow grows by the factor a. The rules:

    sqrt_tokens   a = sqrt(tokens / shift_tokens); shift_tokens 0: a = 1      SD3, arXiv 2403.03206, eq. 23
    exp_tokens    a = exp(mu), mu linear in tokens: 0.5 at 256, 1.15 at 4096  Flux's sampler; past 4096 tokens it grows
                                                              fast: 65,536 tokens have a = 1e5
    area_time     a = sqrt(token frames) times a line in tokens per frame:    Open-Sora 2, arXiv 2503.09642
                  1 at 256, 3 at 4096
"""

from __future__ import annotations

import math

from torch import Tensor

from packing.grid import Shape3
from recaption.errors import UsageError

SHIFT_RULES = ("sqrt_tokens", "exp_tokens", "area_time")


def shifted(t: Tensor, shift: float | Tensor) -> Tensor:
    """t' = a t / (1 + (a - 1) t): towards noise for a > 1, towards clean for a < 1; 0 and 1 stay."""
    return shift * t / (1 + (shift - 1) * t)


def shift_of(rule: str, num_tokens: int, token_shape: Shape3 | None, shift_tokens: int) -> float:
    """The shift a of a sample of this size.

    Args:
        token_shape: tokens along (frames, rows, columns); needed by `area_time`.

    Raises:
        UsageError: no rule of that name.
        ValueError: the rule needs `token_shape`.
    """
    if rule == "sqrt_tokens":
        return math.sqrt(num_tokens / shift_tokens) if shift_tokens else 1.0
    if rule == "exp_tokens":
        return math.exp(_linear(num_tokens, 0.5, 1.15))
    if rule != "area_time":
        raise UsageError(f"unknown shift_rule {rule!r}: choose one of {', '.join(SHIFT_RULES)}")
    if token_shape is None:
        raise ValueError("shift rule 'area_time' needs the frames, rows and columns of a sample: pass token_shapes")
    frames, rows, columns = token_shape
    return _linear(rows * columns, 1.0, 3.0) * math.sqrt(frames)


def _linear(num_tokens: int, at_256: float, at_4096: float) -> float:
    """Linear in `num_tokens` through the two values."""
    return at_256 + (at_4096 - at_256) * (num_tokens - 256) / (4096 - 256)
