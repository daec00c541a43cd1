"""More noise for larger samples: the shift of a time t by a sample's own frames, height and width.

    shifted(0.5, shift_of("sqrt_tokens", 4096, (4, 32, 32), shift_tokens=1024))      # a = 2: t = 2/3

Under t' = a t / (1 + (a - 1) t), noise over signal grows by the factor a on the straight path. What each rule says:

    sqrt_tokens   a = sqrt(tokens / shift_tokens); shift_tokens 0: a = 1      SD3, arXiv 2403.03206, eq. 23
    exp_tokens    a = exp(mu), mu on the line through 0.5 at 256 tokens       Flux's sampler; past 4096 tokens it grows
                  and 1.15 at 4096                                            fast: 65,536 tokens have a = 1e5
    area_time     a = (1 at 256 tokens of a frame, 3 at 4096, on a line)      Open-Sora 2, arXiv 2503.09642
                  times sqrt(frames of tokens)
"""

from __future__ import annotations

import math

from torch import Tensor

from packing.grid import Shape3
from recaption.errors import UsageError

SHIFT_RULES = ("sqrt_tokens", "exp_tokens", "area_time")


def shifted(t: Tensor, shift: float | Tensor) -> Tensor:
    """Move t towards noise (shift > 1) or clean (shift < 1); 0 and 1 stay."""
    return shift * t / (1 + (shift - 1) * t)


def shift_of(rule: str, num_tokens: int, token_shape: Shape3 | None, shift_tokens: int) -> float:
    """The shift a of one sample.

    Args:
        token_shape: tokens along (frames, rows, columns); needed by `area_time`.

    Raises:
        UsageError: no rule of that name.
        ValueError: the rule needs `token_shape`.
    """
    if rule == "sqrt_tokens":
        return math.sqrt(num_tokens / shift_tokens) if shift_tokens else 1.0
    if rule == "exp_tokens":
        return math.exp(_line(num_tokens, 0.5, 1.15))
    if rule != "area_time":
        raise UsageError(f"unknown shift_rule {rule!r}: choose one of {', '.join(SHIFT_RULES)}")
    if token_shape is None:
        raise ValueError("shift rule 'area_time' tells frames from rows and columns: pass token_shapes")
    frames, rows, columns = token_shape
    return _line(rows * columns, 1.0, 3.0) * math.sqrt(frames)


def _line(num_tokens: int, at_256: float, at_4096: float) -> float:
    return at_256 + (at_4096 - at_256) * (num_tokens - 256) / (4096 - 256)
