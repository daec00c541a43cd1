"""Which batches make a step, also where a run goes on with another number of ranks.

Batches are numbered per rank: number n of rank r is batch n * num_ranks + r of the one sequence that all ranks read. A
step of 2 ranks with 2 batches each is the step of 1 rank with 4, so a run keeps its batches per step when its ranks
change: the same steps, the same random numbers, the same curve.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from recaption.errors import CheckpointMismatchError

logger = logging.getLogger(__name__)


@dataclass
class BatchNumbers:
    """The next step's batches are `next` to `next + accumulation - 1`, of every rank."""

    num_ranks: int
    accumulation: int
    """Batches per rank and step."""
    next: int = 0

    def take_step(self) -> range:
        """Numbers of the next step's batches; the step after it is the next one then."""
        taken = range(self.next, self.next + self.accumulation)
        self.next = taken.stop
        return taken

    def in_sequence(self, number: int, rank: int) -> int:
        """Place in the sequence of all ranks: what random numbers depend on."""
        return number * self.num_ranks + rank

    def state_dict(self) -> dict[str, int]:
        return {"per_step": self.num_ranks * self.accumulation, "accumulation": self.accumulation, "read": self._read}

    @property
    def _read(self) -> int:
        return self.next * self.num_ranks

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on after the batches that were read, with as many per step as before where today's ranks can share them.

        Raises:
            CheckpointMismatchError: another accumulation was asked for.
        """
        asked, per_step = self.accumulation, state["per_step"]
        if asked != state["accumulation"] and asked * self.num_ranks != per_step:
            raise CheckpointMismatchError(
                f"{source} was trained with {per_step} batches per step (accumulation = {state['accumulation']}), now it "
                f"is {asked * self.num_ranks}; use the old accumulation or another --name"
            )
        if per_step % self.num_ranks:
            logger.warning(
                "steps had %d batches, which %d ranks cannot share: from here on they have %d",
                per_step, self.num_ranks, asked * self.num_ranks,
            )  # fmt: skip
        else:
            self.accumulation = per_step // self.num_ranks
        self.next = -(-state["read"] // self.num_ranks)
