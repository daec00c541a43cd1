"""How the sizes of samples are spread over the steps of a plan: what balancing the ranks costs in mixture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packing.balance import shuffled


class SizeMix(NamedTuple):
    """How far the sizes within a step are from those of the set: total variation distance of the shares of samples by
    size (octaves of tokens), mean over steps. 0: every step is the set in small; 1: it has sizes of its own."""

    of_steps: float
    of_random_rows: float
    """The same packs in random order: what chance alone makes of so few samples a step."""


def size_mix(num_tokens: np.ndarray, starts: np.ndarray, *, num_ranks: int, seed: int, epoch: int) -> SizeMix:
    """Measure it for rows of samples laid end to end; an incomplete last step is left aside.

    Args:
        num_tokens: of each sample, in the order of the rows.
        starts: where each row starts, and the end of the last.
        seed, epoch: of the random order.
    """
    num_rows = len(starts) - 1
    num_steps = num_rows // num_ranks
    if not num_steps:
        return SizeMix(0.0, 0.0)
    octave = np.log2(num_tokens).astype(np.int64)
    row = np.repeat(np.arange(num_rows), np.diff(starts))
    of_rows = np.zeros((num_rows, int(octave.max()) + 1))
    np.add.at(of_rows, (row, octave), 1)
    of_set = of_rows.sum(axis=0) / of_rows.sum()

    def distance(order: np.ndarray) -> float:
        of_steps = of_rows[order].reshape(num_steps, -1, of_rows.shape[1]).sum(axis=1)
        shares = of_steps / of_steps.sum(axis=1, keepdims=True)
        return float(np.abs(shares - of_set).sum(axis=1).mean() / 2)

    whole = num_steps * num_ranks
    at_random = shuffled(num_rows, seed, epoch, "mix")
    return SizeMix(distance(np.arange(whole)), distance(at_random[:whole]))
