"""Runs the parts of a stage on Ray: one part is one block, one actor call, one commit.

    with Cluster(address=None, num_workers=2) as cluster:
        for summary in cluster.run_parts(PrepareWorker, {"run_uri": ...}, parts, title="prepare"):
            ...
        cluster.throughput()     # busy time, CPU time and rate of that stage's workers

Only jobs/cluster imports ray. It starts at the first part that has to be computed, so a finished run never starts it.

On a cluster each stage is one Ray Data job: an autoscaling pool of actors, one core or one GPU each. On one machine, where
the pool cannot grow, parts go to plain actors directly: Ray Data's planners (three processes, and an import of pandas in
each worker) are half of the overhead of a local Ray. Nothing big passes through the object store: a part is a few
names, a summary a few numbers, so back-pressure by bytes never acts and nothing spills. Frames stay inside the workers.

Ray retries crashed workers for ever, and aborts a whole job on one exception. Here attempts.py decides: actors and
their parts are restarted without limit (a pool whose actors may not restart waits for ever once they are gone), and the
stored state of a part limits how often each input may kill its worker.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from jobs.cluster.attempts import INPUT_TIMEOUT_SECONDS, PartError, PartFaultError
from jobs.cluster.kv_store import KVStore
from jobs.cluster.pools import actor_results, dataset_results, declared_memory, num_that_fit, part_dataset
from jobs.cluster.rank import TrainingRank
from jobs.cluster.session_folder import SessionFolder
from jobs.cluster.throughput import Throughput
from jobs.cluster.worker_errors import WorkerError, WorkerFaultError, check_reachable, user_facing_error
from recaption.errors import RecaptionError, UsageError

__all__ = ["Cluster", "WorkerError", "ray_report"]
MAX_FAILED_PARTS_WITHOUT_SUCCESS = 3
"""Stop the stage when so many parts have failed before any was done."""
TRAINING_RESTARTS = 16
"""Restarts of the ranks in one training run; each loses the steps since the last checkpoint."""
CONTROLLER_RESTARTS = 2
"""Restarts of failures that Ray Train does not handle, such as a rank that dies while the others start."""


class Cluster:
    """A local Ray cluster that is started and stopped here, or a running one at `address`."""

    def __init__(
        self,
        *,
        address: str | None = None,
        num_workers: int | None = None,
        progress: bool = True,
        input_timeout_seconds: float = INPUT_TIMEOUT_SECONDS,
    ) -> None:
        self.address = address
        self.num_workers = num_workers
        self.progress = progress
        self.input_timeout_seconds = input_timeout_seconds
        self.check_folder: Callable[[], None] | None = None
        """Called after every part; raises if the run folder is gone."""
        self.num_deaths = 0
        """Parts that were tried again because their worker had died."""
        self._started = False
        self._session: SessionFolder | None = None
        self._environment_before: dict[str, str | None] = {}
        self._throughput = Throughput()

    def throughput(self) -> dict[str, Any]:
        """Throughput of the last stage: parts, units, workers, wall, busy and CPU seconds, utilisation, rate."""
        return self._throughput.summary()

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
        if self._session is not None:
            self._session.remove()
            _set_environment(self._environment_before)
            self._session = None

    def _start(self) -> None:
        if self._started:
            return
        # Read by Ray at import: no telemetry, no C++ log lines between our progress bars.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Otherwise a leftover thread that calls Ray after shutdown would start a second Ray.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        # Ranks that import torch on a busy machine take longer than Ray Train's 60 seconds.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
        import ray

        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if ray.is_initialized():
                self._started = False  # started by the caller: not ours to stop
            else:
                with _without_stderr():
                    self._join() if self.address else self._start_local()
        except SystemExit as stop:  # Ray's own handler, while it starts
            if stop.code == signal.SIGTERM and callable(on_sigterm):
                on_sigterm(signal.SIGTERM, None)
            raise
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler prints a native stack trace
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)

    def _join(self) -> None:
        import ray

        assert self.address is not None
        check_reachable(self.address)
        try:
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise UsageError(f"no Ray cluster at --address {self.address}: {error}") from error
        self._started = True

    def _start_local(self) -> None:
        import ray

        self._session = SessionFolder()
        self._environment_before = _set_environment(self._session.environment)
        self._started = True  # from here on there may be processes to stop
        # `local`: without it Ray joins any cluster that happens to run on this machine.
        ray.init(
            address="local",
            num_cpus=self.local_workers(),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=self._session.sessions,
        )

    def local_workers(self) -> int:
        return self.num_workers or os.cpu_count() or 1

    def _num_gpus(self, device: str) -> int:
        """GPUs per actor on `device` (`cpu`, `auto`, `cuda`); Ray hides all others from the actor.

        Raises:
            UsageError: `cuda` on a cluster without a GPU; Ray would wait for one for ever.
        """
        import ray

        if device == "cpu":
            return 0
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        if not has_gpus and device != "auto":
            raise UsageError(f"device {device!r}: no node of this Ray cluster has a GPU; use cpu or auto")
        return int(has_gpus)

    def _results(
        self, runner: dict[str, Any], blocks: Sequence[dict[str, Any]], num_gpus: int, memory_bytes: int
    ) -> Any:
        """Context manager of an iterator over the results of `PartRunner(**runner)`, in order of completion.

        On a cluster there are as many actors as fit, and more as soon as nodes join; on one machine, one per core, or as
        many as its memory holds.
        """
        limit = self.num_workers or (len(blocks) if self.address else self.local_workers())
        limit = max(1, min(limit, len(blocks)))
        if self.address or num_gpus:
            return dataset_results(part_dataset(runner, blocks, limit, num_gpus, declared_memory(memory_bytes)))
        memory_bytes = declared_memory(memory_bytes)
        return actor_results(runner, blocks, min(limit, num_that_fit(memory_bytes)), memory_bytes)

    def run_parts(
        self,
        worker: Callable[..., Callable[[dict[str, Any]], dict[str, Any]]],
        settings: dict[str, Any],
        parts: Sequence[dict[str, Any]],
        *,
        title: str,
        device: str = "cpu",
        unit: str = "parts",
        memory_bytes: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Run `worker(**settings)` on each part in a pool of actors; yield the summaries in order of completion.

        Args:
            worker: a class; one instance per actor, so that models load once. Called with one part (JSON-able), it
                commits the part's outputs itself and returns a JSON-able summary. It announces its inputs with
                `attempts.begin`: one that kills the worker, raises or never ends then becomes a failed row.
            device: device of the actors: `cpu`, `cuda`, or `auto` for GPUs where the cluster has any.
            unit: key of the summaries that counts the work done, for `throughput`.
            memory_bytes: what one actor needs, so that Ray starts no more of them than a node holds; 0 = not declared.

        Raises:
            WorkerError: a worker failed outside of its inputs (storage, its own start), or a part failed although its
                bad inputs were excluded one by one; in the latter case all other parts are done.
            UsageError: no GPU for `cuda`, or raised by the worker.
        """
        self._throughput = stage = Throughput(unit=unit)
        if not parts:
            return
        self._start()
        import ray

        num_gpus = self._num_gpus(device)
        run_id = uuid.uuid4().hex
        blocks = [{"part": json.dumps(part), "index": index} for index, part in enumerate(parts)]
        runner = {
            "worker": worker,
            "settings": settings,
            "run_id": run_id,
            "input_timeout_seconds": self.input_timeout_seconds,
        }
        bar = tqdm(total=len(parts), desc=title, unit="part", file=sys.stderr, disable=not self.progress)
        failed_parts: list[str] = []
        is_fault = False
        started = time.perf_counter()
        try:
            with bar, self._results(runner, blocks, num_gpus, memory_bytes) as rows:
                for row in rows:
                    stage.wall_seconds = time.perf_counter() - started
                    bar.update(1)
                    if error := self._error_of(title, row):
                        is_fault = is_fault or error["kind"] == PartFaultError.__name__
                        failed_parts.append(f"part {row['index']}: {error['text']}")
                        if len(failed_parts) >= MAX_FAILED_PARTS_WITHOUT_SUCCESS and not stage.num_parts:
                            break
                        continue
                    summary = json.loads(row["summary"])
                    stage.add(json.loads(row["usage"]), summary.get(unit, 1))
                    yield summary
        except ray.exceptions.RayError as error:
            raise WorkerError(f"{title}: a worker died: {error}; finished parts are safe, run it again") from error
        KVStore(run_id).clear()
        if failed_parts:
            done = f"{stage.num_parts} of {len(parts)} parts are done"
            raise (WorkerFaultError if is_fault else WorkerError)(
                f"{title}: {done}, {len(failed_parts)} failed: {'; '.join(failed_parts[:3])}"
            )

    def _error_of(self, title: str, row: dict[str, Any]) -> dict[str, str] | None:
        """The error of a part that failed after retries, None if it is done; errors that end the stage are raised."""
        self.num_deaths += row["was_retried"]
        if self.check_folder is not None:
            self.check_folder()
        error: dict[str, str] | None = json.loads(row["error"] or "null")
        if error and error["kind"] not in (PartError.__name__, PartFaultError.__name__):
            raise user_facing_error(title, **error)
        return error

    def run_once(self, function: Callable[..., Any], *arguments: Any, device: str = "cpu") -> Any:
        """Run one function as a remote task and return its result (training and sampling with `--address`)."""
        self._start()
        import ray

        remote = ray.remote(num_cpus=1, num_gpus=self._num_gpus(device), max_retries=0)(function)
        try:
            return ray.get(remote.remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RecaptionError):
                raise cause from error
            raise WorkerFaultError(f"a worker failed: {type(cause).__name__}: {cause}\n{error}") from error

    def run_training(
        self, function: Callable[..., Any], *arguments: Any, num_workers: int, scratch: str, device: str = "cpu"
    ) -> Any:
        """Run one function on `num_workers` ranks of one process group (Ray Train); returns the result of rank 0.

        A rank that dies, or a node that is lost, ends all ranks; they are restarted and call the function again, which
        therefore has to resume from its own last checkpoint.

        Args:
            function: returns something JSON-able. One CPU per rank, and a GPU unless `device` is `cpu` or there are none.
            scratch: folder on storage shared by all nodes, for the state of Ray Train; removed at the end.

        Raises:
            RecaptionError: raised by the function, without a restart. WorkerError: anything else, after all restarts.
        """
        run_id = uuid.uuid4().hex
        for _ in range(CONTROLLER_RESTARTS + 1):
            self._start()
            failure = self._fit(TrainingRank(function, arguments, run_id), num_workers, scratch, device)
            store = KVStore(run_id)
            end = store.read("end")
            store.clear()
            shutil.rmtree(scratch, ignore_errors=True)
            if "error" in end:
                raise user_facing_error("train", **end["error"])
            if failure is None:
                return end["returned"]
            if not self.address:
                self.stop()  # Ray Train may have left the CPUs of the dead ranks reserved
        raise WorkerError(f"train: its ranks kept dying: {failure}; the last checkpoint is safe") from failure

    def _fit(self, rank: TrainingRank, num_workers: int, scratch: str, device: str) -> Exception | None:
        """Run Ray Train once, with its own restarts; returns the exception it failed with, or None."""
        import ray.train
        from ray.train.torch import TorchTrainer

        num_gpus = self._num_gpus(device)
        for name in ("ray.train", "ray.train.v2"):
            logging.getLogger(name).setLevel(logging.ERROR)
        trainer = TorchTrainer(
            rank,
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=bool(num_gpus),
                resources_per_worker={"CPU": 1, **({"GPU": 1} if num_gpus else {})},
            ),
            run_config=ray.train.RunConfig(
                name=rank.run_id,
                storage_path=os.path.abspath(scratch),
                failure_config=ray.train.FailureConfig(max_failures=TRAINING_RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # the exception classes of Ray Train move between versions
            return error
        return None


def _set_environment(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Set what Ray reads, None: unset it; returns what was set before."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    with contextlib.suppress(ImportError, AttributeError):  # Ray without tokens
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    return before


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's C++ side writes a line at its start, and a stack trace where a signal comes before its start is over."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def ray_report() -> dict[str, str]:
    """Version of Ray, for `recaption doctor`."""
    import ray

    return {"version": ray.__version__}
