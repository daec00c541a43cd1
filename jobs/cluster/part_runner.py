"""The Ray actor that runs the parts of a stage with one worker object, and restarts its process on failure."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from jobs.cluster import attempts
from jobs.cluster.attempts import Attempt, PartState
from jobs.cluster.kv_store import KVStore
from jobs.cluster.throughput import cpu_seconds
from jobs.cluster.worker_errors import error_fields
from recaption.video_io.fallbacks import take_fallbacks

MAX_DEATHS_AT_START = 5
"""Consecutive deaths in the constructor of one worker: weights that do not fit, a library that crashes at import."""


def _node_is_alive(node_id: str) -> bool:
    import ray

    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def _was_out_of_memory(worker_id: str) -> bool:
    """Whether Ray's memory monitor killed that worker process; False where this version of Ray does not say."""
    try:
        from ray._private.state import state
        from ray.core.generated import common_pb2, gcs_pb2

        for row in state._connect_and_get_accessor().get_worker_table():
            worker = gcs_pb2.WorkerTableData.FromString(row)
            if worker.worker_address.worker_id.hex() == worker_id:
                return bool(worker.exit_type == common_pb2.NODE_OUT_OF_MEMORY)
    except (ImportError, AttributeError, ValueError):
        pass
    return False


class PartRunner:
    """Calls the stage worker on one part; JSON strings in and out, so Ray ships only a few bytes per part."""

    def __init__(
        self, worker: Callable[..., Any], settings: dict[str, Any], run_id: str, input_timeout_seconds: float
    ) -> None:
        import ray

        context = ray.get_runtime_context()
        self.store = KVStore(run_id)
        self.node = context.get_node_id()
        self.actor = context.get_actor_id()
        self.process = context.get_worker_id()
        self.input_timeout_seconds = input_timeout_seconds
        self.init_error: dict[str, str] | None = None
        key = f"starting/{self.actor}"
        num_deaths = self.store.read(key).get("num_starts", 0)
        if num_deaths >= MAX_DEATHS_AT_START:
            text = f"its process died {num_deaths} times while it started"
            self.init_error = {"kind": "WorkerError", "text": text, "where": ""}
            return
        self.store.write(key, {"num_starts": num_deaths + 1})
        try:
            self.worker = worker(**settings)
        except Exception as error:
            # Returned with the first part: Ray would retry the constructor three times and print each error.
            self.init_error = error_fields(error)
        self.store.clear(key)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        usage: dict[str, Any] = {"worker": self.actor}
        key = f"part/{row['index']}"
        result = {"index": row["index"], "summary": "", "error": json.dumps(self.init_error or ""), "usage": ""}
        result["was_retried"] = self.store.read(key).get("num_attempts", 0) > 0
        if self.init_error:
            return result
        wall_before, cpu_before = time.perf_counter(), cpu_seconds()
        try:
            summary = self._run(key, json.loads(row["part"]))
        except Exception as error:  # returned as a row: Ray would print it five times and retry some kinds for ever
            return {**result, "error": json.dumps(error_fields(error))}
        usage |= {"wall_seconds": time.perf_counter() - wall_before, "cpu_seconds": cpu_seconds() - cpu_before}
        usage["decoder_fallbacks"] = take_fallbacks()
        return {**result, "summary": json.dumps(summary), "error": "", "usage": json.dumps(usage)}

    def _run(self, key: str, part: dict[str, Any]) -> Any:
        state = PartState(**self.store.read(key))
        state.attribute_last_failure(_node_is_alive, _was_out_of_memory)
        attempt = Attempt(
            state,
            lambda value: self.store.write(key, value),
            node=self.node,
            worker=self.process,
            input_timeout_seconds=self.input_timeout_seconds,
        )
        attempts.set_current(attempt)
        try:
            summary = self.worker(part)
        except Exception as error:
            if attempt.record_exception(error):
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)  # Ray starts a fresh process: this one may hold half a model or a broken CUDA context
            raise
        finally:
            attempts.set_current(None)
            attempt.end()
        self.store.clear(key)
        return summary
