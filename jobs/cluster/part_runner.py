"""The Ray actor that computes parts with one stage worker, and what its death means."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from jobs.cluster import attempts
from jobs.cluster.attempts import Attempt, Record
from jobs.cluster.notes import _Notes
from jobs.cluster.throughput import cpu_seconds
from jobs.cluster.worker_errors import described

DEATHS_WHILE_STARTING = 5
"""In a row, of one worker, before it has seen any part: weights that do not fit, a library that crashes at import."""


def _node_is_alive(node_id: str) -> bool:
    import ray

    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


class _PartRunner:
    """JSON in, JSON out: what Ray ships is a few short strings a part."""

    def __init__(self, worker: Callable[..., Any], settings: dict[str, Any], run_id: str, stuck_seconds: float) -> None:
        import ray

        context = ray.get_runtime_context()
        self.notes = _Notes(run_id)
        self.node = context.get_node_id()
        self.actor = context.get_actor_id()
        self.stuck_seconds = stuck_seconds
        self.broken: dict[str, str] | None = None
        key = f"starting/{self.actor}"
        num_deaths = self.notes.read(key).get("num_starts", 0)
        if num_deaths >= DEATHS_WHILE_STARTING:
            text = f"its process died {num_deaths} times while it started"
            self.broken = {"kind": "WorkerError", "text": text, "where": ""}
            return
        self.notes.write(key, {"num_starts": num_deaths + 1})
        try:
            self.worker = worker(**settings)
        except Exception as error:  # travels with the first part: Ray would try three times more and print each
            self.broken = described(error)
        self.notes.clear(key)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        usage: dict[str, Any] = {"worker": self.actor}
        answer = {"index": row["index"], "summary": "", "error": json.dumps(self.broken or ""), "usage": ""}
        if self.broken:
            return answer
        wall_before, cpu_before = time.perf_counter(), cpu_seconds()
        try:
            summary = self._run(f"part/{row['index']}", json.loads(row["part"]))
        except Exception as error:  # travels as a row: Ray would print it five times and retry some kinds for ever
            return {**answer, "error": json.dumps(described(error))}
        usage |= {
            "wall_seconds": time.perf_counter() - wall_before,
            "cpu_seconds": cpu_seconds() - cpu_before,
        }
        return {**answer, "summary": json.dumps(summary), "error": "", "usage": json.dumps(usage)}

    def _run(self, key: str, part: dict[str, Any]) -> Any:
        record = Record(**self.notes.read(key))
        record.account_for_last_attempt(_node_is_alive)
        attempt = Attempt(
            record, lambda note: self.notes.write(key, note), node=self.node, stuck_seconds=self.stuck_seconds
        )
        attempts.start(attempt)
        try:
            summary = self.worker(part)
        except Exception as error:
            if attempt.raised(error):
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)  # Ray starts a fresh process: this one may hold half a model or a broken CUDA context
            raise
        finally:
            attempts.start(None)
            attempt.end()
        self.notes.clear(key)
        return summary
