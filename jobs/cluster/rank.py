"""The function that Ray Train runs on each rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.cluster.kv_store import KVStore
from jobs.cluster.worker_errors import error_fields
from recaption.errors import RecaptionError


class TrainingRank:
    """Runs the training function; the result of rank 0, or the first RecaptionError, is stored under the key `end`."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], run_id: str) -> None:
        self.function, self.arguments, self.run_id = function, arguments, run_id

    def __call__(self) -> None:
        import ray.train

        store = KVStore(self.run_id)
        if store.read("end"):  # restarted after a RecaptionError, which would only be raised again
            return
        try:
            returned = self.function(*self.arguments)
        except RecaptionError as error:
            store.write("end", {"error": error_fields(error)})
            raise
        if ray.train.get_context().get_world_rank() == 0:
            store.write("end", {"returned": returned})
