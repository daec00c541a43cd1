"""The Ray actor of one training rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.cluster.notes import _Notes
from jobs.cluster.worker_errors import described
from recaption.errors import RecaptionError


class _Rank:
    """What each rank runs; rank 0's answer, or the first mistake of a user, travels as a note."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], run_id: str) -> None:
        self.function, self.arguments, self.run_id = function, arguments, run_id

    def __call__(self) -> None:
        import ray.train

        notes = _Notes(self.run_id)
        if notes.read("end"):  # started again after a mistake, which does not go away by being made again
            return
        try:
            returned = self.function(*self.arguments)
        except RecaptionError as error:
            notes.write("end", {"error": described(error)})
            raise
        if ray.train.get_context().get_world_rank() == 0:
            notes.write("end", {"returned": returned})
