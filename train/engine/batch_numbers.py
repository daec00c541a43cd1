"""Which batch numbers make up an optimizer step, also after a resume on another number of ranks.

Batches are numbered per rank: batch n of rank r is number n * num_ranks + r of the global sequence. A step of 2 ranks
with 2 batches each equals a step of 1 rank with 4, so a run keeps its global batch size when the number of ranks
changes, and with it its steps, random numbers and loss curve.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from recaption.errors import CheckpointMismatchError

logger = logging.getLogger(__name__)


@dataclass
class StepBatches:
    """On every rank the next step takes batches `next` to `next + accumulation - 1`."""

    num_ranks: int
    accumulation: int
    """Batches per rank and optimizer step."""
    next: int = 0

    def take_step(self) -> range:
        """This rank's batch numbers of the next step; advances by one step."""
        taken = range(self.next, self.next + self.accumulation)
        self.next = taken.stop
        return taken

    def global_number(self, number: int, rank: int) -> int:
        """Position in the global sequence of all ranks, which seeds the batch's random numbers."""
        return number * self.num_ranks + rank

    def state_dict(self) -> dict[str, int]:
        return {
            "per_step": self.num_ranks * self.accumulation,
            "accumulation": self.accumulation,
            "num_read": self._num_read,
        }

    @property
    def _num_read(self) -> int:
        return self.next * self.num_ranks

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Continue after the batches already read, with the same global batch size if `num_ranks` divides it.

        Raises:
            CheckpointMismatchError: `accumulation` was changed.
        """
        accumulation, per_step = self.accumulation, state["per_step"]
        if accumulation != state["accumulation"] and accumulation * self.num_ranks != per_step:
            raise CheckpointMismatchError(
                f"{source} was trained with {per_step} batches per step (accumulation = {state['accumulation']}), now it "
                f"is {accumulation * self.num_ranks}; use the old accumulation or another --name"
            )
        if per_step % self.num_ranks:
            logger.warning(
                "steps had %d batches, which %d ranks cannot share evenly: from here on they have %d",
                per_step, self.num_ranks, accumulation * self.num_ranks,
            )  # fmt: skip
        else:
            self.accumulation = per_step // self.num_ranks
        self.next = -(-state["num_read"] // self.num_ranks)
