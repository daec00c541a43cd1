"""Ray: the only file that imports it. Work comes in parts; one part is one block, one task, one commit.

    with Cluster(address=None, num_workers=2) as cluster:
        for summary in cluster.run_parts(PrepareWorker, {"run_uri": ...}, parts, title="prepare"):
            ...

Ray starts at the first part that has to be computed: a run with nothing left to do never pays for it.
Nothing big passes through the object store: a part is a few names, a summary a few numbers.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from recaption import errors
from recaption.errors import RecaptionError, UsageError

RESTARTS_OF_A_DEAD_WORKER = 3
"""Ray's default is "for ever": a part that kills its worker each time would never end."""


REACHABLE_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""


class WorkerError(RecaptionError):
    """A worker died or raised: finished parts are safe, run the same command again."""


class Cluster:
    """A local Ray that is started and stopped here, or a running one at `address`."""

    def __init__(self, *, address: str | None = None, num_workers: int | None = None, progress: bool = True) -> None:
        self.address = address
        self.num_workers = num_workers
        self.progress = progress
        self._started = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._started:
            import ray

            ray.shutdown()
            self._started = False

    def _start(self) -> None:
        if self._started:
            return
        # Read by Ray at import: no telemetry, no C++ log lines between our progress bars.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray.data

        if ray.is_initialized():
            self._started = False  # somebody else's: not ours to stop
        elif self.address:
            _check_reachable(self.address)
            try:
                ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
            except ConnectionError as error:
                raise UsageError(f"no Ray cluster answers at --address {self.address}: {error}") from error
            self._started = True
        else:
            # One logical CPU more than workers: Ray Data's read task needs one, and would wait for ever without it.
            # `local`: without it Ray joins any cluster that happens to run on this machine.
            ray.init(
                address="local",
                num_cpus=self.local_workers() + 1,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            self._started = True
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Ray fails the whole job after this long without a finished part; decoding has limits of its own.
        context.execution_options.verbose_progress = False
        for name in ("ray.data", "ray.data._internal.execution.streaming_executor", "ray._private.worker"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def local_workers(self) -> int:
        return self.num_workers or os.cpu_count() or 1

    def _num_gpus(self, device: str) -> int:
        """GPUs that one actor on `device` (`cpu`, `auto`, `cuda`) is given: Ray hides the others from it.

        Raises:
            UsageError: a GPU is asked for by name and the cluster has none; Ray would wait for one for ever.
        """
        import ray

        if device == "cpu":
            return 0
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        if not has_gpus and device != "auto":
            raise UsageError(f"device {device!r} asked for, but no node of this Ray cluster has a GPU; use cpu or auto")
        return int(has_gpus)

    def _pool_size(self, num_parts: int, num_gpus: int) -> int:
        import ray

        if self.num_workers:
            limit = self.num_workers
        elif num_gpus:
            limit = int(ray.cluster_resources()["GPU"])
        elif self.address:
            limit = max(1, int(ray.cluster_resources().get("CPU", 2)) - 1)
        else:
            limit = self.local_workers()
        return max(1, min(limit, num_parts))

    def run_parts(
        self,
        worker: Callable[..., Callable[[dict[str, Any]], dict[str, Any]]],
        settings: dict[str, Any],
        parts: Sequence[dict[str, Any]],
        *,
        title: str,
        device: str = "cpu",
    ) -> Iterator[dict[str, Any]]:
        """Give each part to `worker(**settings)` in a pool of actors; yield the summaries as they come.

        Args:
            worker: a class; one instance per actor, so that models load once. Called with one part (JSON-able), it
                commits the part's outputs itself and returns a JSON-able summary.
            device: what the actors compute on: `cpu`, `cuda`, or `auto` for GPUs where the cluster has any.

        Raises:
            WorkerError: an actor raised, or died more often than it may.
            UsageError: no GPU for `cuda`; or what the worker raised as one.
        """
        if not parts:
            return
        self._start()
        import ray
        import ray.data
        from ray.data import ActorPoolStrategy

        num_gpus = self._num_gpus(device)
        rows = [{"part": json.dumps(part)} for part in parts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `ray_remote_args`: there is no other way to bound restarts yet
            summaries = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _PartRunner,
                fn_constructor_kwargs={"worker": worker, "settings": settings},
                compute=ActorPoolStrategy(size=self._pool_size(len(parts), num_gpus)),
                num_cpus=1,
                num_gpus=num_gpus or None,
                max_restarts=RESTARTS_OF_A_DEAD_WORKER,
                max_task_retries=RESTARTS_OF_A_DEAD_WORKER,
            )
        bar = tqdm(total=len(parts), desc=title, unit="part", file=sys.stderr, disable=not self.progress)
        with bar:
            try:
                for row in summaries.iter_rows():
                    if row["error"]:
                        raise _error_of_worker(title, **json.loads(row["error"]))
                    bar.update(1)
                    yield json.loads(row["summary"])
            except ray.exceptions.RayError as error:
                raise WorkerError(f"{title}: a worker died: {error}; finished parts are safe, run it again") from error

    def run_once(self, function: Callable[..., Any], *arguments: Any, device: str = "cpu") -> Any:
        """Run one function on the cluster and return what it returns: training and sampling with `--address`."""
        self._start()
        import ray

        remote = ray.remote(num_cpus=1, num_gpus=self._num_gpus(device), max_retries=0)(function)
        try:
            return ray.get(remote.remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, RecaptionError) else WorkerError(str(cause)) from error


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, with warnings; a wrong address is one sentence here."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # `auto`, `local`: Ray's own words, which it answers at once
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray cluster answers at --address {address}: {error}") from error


class _PartRunner:
    """JSON in, JSON out: what Ray ships is two short strings a part."""

    def __init__(self, worker: Callable[..., Any], settings: dict[str, Any]) -> None:
        self.worker = worker(**settings)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            return {"summary": json.dumps(self.worker(json.loads(row["part"]))), "error": ""}
        except Exception as error:  # travels as a row: Ray would print it five times and retry some kinds for ever
            where = traceback.format_exc(limit=-3)
            return {
                "summary": "",
                "error": json.dumps({"kind": type(error).__name__, "text": str(error), "where": where}),
            }


def _error_of_worker(title: str, *, kind: str, text: str, where: str) -> RecaptionError:
    """A user's mistake comes back as what it is; anything else names the stage and the lines it came from."""
    cls = getattr(errors, kind, None)
    if isinstance(cls, type) and issubclass(cls, errors.UsageError):
        return cls(text)
    return WorkerError(f"{title}: a worker failed: {kind}: {text}; finished parts are safe\n{where}")


def ray_report() -> dict[str, str]:
    """Version of Ray, for `recaption doctor`."""
    import ray

    return {"version": ray.__version__}
