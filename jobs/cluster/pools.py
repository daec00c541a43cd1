"""Pools of Ray actors that take parts: Ray Data on a cluster, plain actors on one machine."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.cluster.part_runner import _PartRunner

UNLIMITED = {"max_restarts": -1, "max_task_retries": -1}
"""Of an actor and of its parts: see above."""


def _dataset(runner: dict[str, Any], blocks: Sequence[dict[str, Any]], limit: int, num_gpus: int) -> Any:
    """A Ray Data job that has not been started."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # After 30 minutes without a finished part Ray would fail the job: one part may well hold hours of video.
    context.execution_no_progress_timeout_s = -1
    context.execution_options.verbose_progress = False
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `ray_remote_args`: there is no other way to set restarts yet
        return ray.data.from_items(list(blocks), override_num_blocks=len(blocks)).map(
            _PartRunner,
            fn_constructor_kwargs=runner,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=limit),
            num_cpus=1,
            num_gpus=num_gpus or None,
            **UNLIMITED,
        )


@contextlib.contextmanager
def _rows_of_actors(
    runner: dict[str, Any], blocks: Sequence[dict[str, Any]], limit: int
) -> Iterator[Iterator[dict[str, Any]]]:
    """Each of `limit` actors gets its next block when it is up, or has answered the one before.

    One that nobody holds any more ends, with its part if it is in the middle of one. `ray.util.ActorPool` would give blocks
    to actors that are not up, and these would have to start for it.
    """
    import ray

    actor_class = ray.remote(num_cpus=1, **UNLIMITED)(_PartRunner)
    busy = {actor.__ray_ready__.remote(): actor for actor in (actor_class.remote(**runner) for _ in range(limit))}

    def rows() -> Iterator[dict[str, Any]]:
        waiting = iter(blocks)
        while busy:
            (done,), _ = ray.wait(list(busy))
            if block := next(waiting, None):
                busy[busy[done].__call__.remote(block)] = busy[done]
            del busy[done]
            answer = ray.get(done)
            if isinstance(answer, dict):  # not of an actor that is just up
                yield answer

    try:
        yield rows()
    finally:
        busy.clear()  # a traceback may hold the rest


@contextlib.contextmanager
def _rows(dataset: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """Of each block as it is done. `iter_rows` is not for runs that may end early.

    Its prefetching thread outlives an iterator that was not exhausted, and calls Ray after its end. And what a traceback
    still holds would shut down after Ray: hence the `close`.
    """
    blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with contextlib.closing(blocks):
        yield (row for block in blocks for row in block.to_pylist())
