"""Actor pools that run parts: Ray Data on a cluster, plain Ray actors on one machine."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.cluster.part_runner import PartRunner

UNLIMITED = {"max_restarts": -1, "max_task_retries": -1}
"""Actors and their parts restart without limit; jobs/cluster/attempts.py limits the deaths per input."""


def declared_memory(memory_bytes: int) -> int:
    """What an actor declares to Ray: never more than a node has, or Ray would wait for ever for a larger one."""
    import ray

    largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return int(min(memory_bytes, largest))


def num_that_fit(memory_bytes: int) -> int:
    """How many such actors the cluster holds now; at least one."""
    import ray

    return max(1, int(ray.cluster_resources().get("memory", 0) // memory_bytes)) if memory_bytes else sys.maxsize


def part_dataset(
    runner: dict[str, Any], blocks: Sequence[dict[str, Any]], limit: int, num_gpus: int, memory_bytes: int
) -> Any:
    """A lazy Ray Data pipeline over the blocks; not started yet."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray would fail the job after 30 minutes without a finished part; one part may hold hours of video.
    context.execution_no_progress_timeout_s = -1
    context.execution_options.verbose_progress = False
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `ray_remote_args`: there is no other way to set restarts yet
        return ray.data.from_items(list(blocks), override_num_blocks=len(blocks)).map(
            PartRunner,
            fn_constructor_kwargs=runner,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=limit),
            num_cpus=1,
            num_gpus=num_gpus or None,
            memory=memory_bytes or None,
            **UNLIMITED,
        )


@contextlib.contextmanager
def actor_results(
    runner: dict[str, Any], blocks: Sequence[dict[str, Any]], limit: int, memory_bytes: int
) -> Iterator[Iterator[dict[str, Any]]]:
    """Results of `limit` plain actors; each gets its next block when it is ready.

    Actors end when the last handle to them is dropped, in the middle of a part too. `ray.util.ActorPool` would assign
    blocks to actors that are still starting.
    """
    import ray

    actor_class = ray.remote(num_cpus=1, memory=memory_bytes or None, **UNLIMITED)(PartRunner)
    busy = {actor.__ray_ready__.remote(): actor for actor in (actor_class.remote(**runner) for _ in range(limit))}

    def rows() -> Iterator[dict[str, Any]]:
        waiting = iter(blocks)
        while busy:
            (done,), _ = ray.wait(list(busy))
            if block := next(waiting, None):
                busy[busy[done].__call__.remote(block)] = busy[done]
            del busy[done]
            result = ray.get(done)
            if isinstance(result, dict):  # an actor that has just started returns no row
                yield result

    try:
        yield rows()
    finally:
        busy.clear()  # drops the handles, and so ends the actors; a traceback may hold the rest of the frame


@contextlib.contextmanager
def dataset_results(dataset: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """Results of a Ray Data pipeline, block by block.

    Not `iter_rows`: its prefetch thread outlives an iterator that was not exhausted and calls Ray after shutdown. An
    iterator that a traceback still holds would be closed after Ray's shutdown, hence the explicit `close`.
    """
    blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with contextlib.closing(blocks):
        yield (row for block in blocks for row in block.to_pylist())
