"""Where each stretch of training begins, when epochs are not equally long.

A stretch is one window of one epoch: stretch k is the (k % W)-th window of epoch k // W. How many rows it has only its plan
tells, so rows are counted from a known beginning: that of training, or of a stretch that a saved state names, which spares
a resume all plans before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from recaption.errors import UsageError

MAX_EMPTY_STRETCHES = 1000

Beginning = tuple[int, int]
"""(number of a stretch, its first row)."""


class Stretches:
    def __init__(self, num_rows: Callable[[int], int]) -> None:
        """
        Args:
            num_rows: of a stretch, by its number.
        """
        self._num_rows = num_rows
        self.begin_at((0, 0))

    def begin_at(self, beginning: Beginning) -> None:
        """Count from there; rows before it are counted from the beginning of training."""
        self._first, first_row = beginning
        self._edges = [first_row]  # of stretch _first and those after it, as far as they are known

    def find(self, row: int) -> Beginning:
        """The stretch that a row lies in.

        Raises:
            UsageError: stretch after stretch shows nothing.
        """
        if row < self._edges[0]:
            self.begin_at((0, 0))
        num_empty = 0
        while self._edges[-1] <= row:
            num_rows = self._num_rows(self._first + len(self._edges) - 1)
            num_empty = 0 if num_rows else num_empty + 1
            if num_empty > MAX_EMPTY_STRETCHES:
                raise UsageError("epoch after epoch shows no sample: the weights of the mix leave none")
            self._edges.append(self._edges[-1] + num_rows)
        place = bisect_right(self._edges, row) - 1
        return self._first + place, self._edges[place]
