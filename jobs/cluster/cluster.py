"""Ray: the only file that imports it. Work comes in parts; one part is one block, one task, one commit.

    with Cluster(address=None, num_workers=2) as cluster:
        for summary in cluster.run_parts(PrepareWorker, {"run_uri": ...}, parts, title="prepare"):
            ...
        cluster.throughput()     # what the workers of that stage did with their time

Ray starts at the first part that has to be computed: a run with nothing left to do never pays for it.

On a cluster each stage is one Ray Data job: an autoscaling pool of actors, one core or one GPU each. On one machine, where
the pool cannot grow, the same actors are given their parts directly: Ray Data's planners, three processes and an import of
pandas in each worker, cost half of what a local Ray does. Nothing big passes through the object store: a part is a few
names, a summary a few numbers, so Ray's back-pressure by bytes never has to act and nothing can spill. Frames live and die
inside the workers.

Ray retries what dies for ever, and gives up a whole job over one exception. Here both end in attempts.py: actors and
their parts are restarted without limit (a pool whose actors may not be restarted waits for ever once they are gone),
and it is the record of a part that decides which of its inputs has cost enough.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from jobs.cluster.attempts import STUCK_SECONDS, PartError
from jobs.cluster.notes import _Notes
from jobs.cluster.pools import _dataset, _rows, _rows_of_actors
from jobs.cluster.rank import _Rank
from jobs.cluster.throughput import Throughput
from jobs.cluster.worker_errors import WorkerError, check_reachable, error_of_worker
from recaption.errors import RecaptionError, UsageError

__all__ = ["Cluster", "WorkerError", "ray_report"]


UNDONE_BEFORE_ANY_DONE = 3
"""So many parts that cannot be done, and none that could: more of the same would follow."""


TRAINING_RESTARTS = 16
"""Deaths of ranks in one training until it is given up: each costs the steps since the last checkpoint."""


CONTROLLER_RESTARTS = 2
"""What Ray Train does not restart by itself, such as a rank that dies while the others start."""


class Cluster:
    """A local Ray that is started and stopped here, or a running one at `address`."""

    def __init__(
        self,
        *,
        address: str | None = None,
        num_workers: int | None = None,
        progress: bool = True,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        self.address = address
        self.num_workers = num_workers
        self.progress = progress
        self.stuck_seconds = stuck_seconds
        self._started = False
        self._throughput = Throughput()

    def throughput(self) -> dict[str, Any]:
        """Of the stage that ran last: parts, units, workers, wall, busy and CPU seconds, utilisation, rate."""
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

    def _start(self) -> None:
        if self._started:
            return
        # Read by Ray at import: no telemetry, no C++ log lines between our progress bars.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # A forgotten thread that calls Ray after its end would start another one, beside the next of ours.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        # Ranks that import torch on a busy machine take longer than Ray Train's 60 seconds.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
        import ray

        if ray.is_initialized():
            self._started = False  # somebody else's: not ours to stop
        elif self.address:
            check_reachable(self.address)
            try:
                ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
            except ConnectionError as error:
                raise UsageError(f"no Ray cluster answers at --address {self.address}: {error}") from error
            self._started = True
        else:
            # `local`: without it Ray joins any cluster that happens to run on this machine.
            ray.init(
                address="local",
                num_cpus=self.local_workers(),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            self._started = True
        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)

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

    def _answers(self, runner: dict[str, Any], blocks: Sequence[dict[str, Any]], num_gpus: int) -> Any:
        """Context of an iterator over what `_PartRunner(**runner)` answers to each block, as it comes.

        On a cluster there are as many actors as fit, and more as soon as nodes join; here, one per core.
        """
        limit = self.num_workers or (len(blocks) if self.address else self.local_workers())
        limit = max(1, min(limit, len(blocks)))
        if self.address or num_gpus:
            return _rows(_dataset(runner, blocks, limit, num_gpus))
        return _rows_of_actors(runner, blocks, limit)

    def run_parts(
        self,
        worker: Callable[..., Callable[[dict[str, Any]], dict[str, Any]]],
        settings: dict[str, Any],
        parts: Sequence[dict[str, Any]],
        *,
        title: str,
        device: str = "cpu",
        unit: str = "parts",
    ) -> Iterator[dict[str, Any]]:
        """Give each part to `worker(**settings)` in a pool of actors; yield the summaries as they come.

        Args:
            worker: a class; one instance per actor, so that models load once. Called with one part (JSON-able), it
                commits the part's outputs itself and returns a JSON-able summary. It names its inputs with
                `attempts.begin`: one that kills it, raises or never ends then costs its own row.
            device: what the actors compute on: `cpu`, `cuda`, or `auto` for GPUs where the cluster has any.
            unit: the count in the summaries that says how much work it was, for `throughput`.

        Raises:
            WorkerError: a worker failed on no input in particular (storage, its own start), or a part could not be
                done although its inputs were given up one by one; in the latter case all other parts are done.
            UsageError: no GPU for `cuda`; or what the worker raised as one.
        """
        self._throughput = stage = Throughput(unit=unit)
        if not parts:
            return
        self._start()
        import ray

        num_gpus = self._num_gpus(device)
        run_id = uuid.uuid4().hex
        blocks = [{"part": json.dumps(part), "index": index} for index, part in enumerate(parts)]
        runner = {"worker": worker, "settings": settings, "run_id": run_id, "stuck_seconds": self.stuck_seconds}
        bar = tqdm(total=len(parts), desc=title, unit="part", file=sys.stderr, disable=not self.progress)
        undone: list[str] = []
        started = time.perf_counter()
        try:
            with bar, self._answers(runner, blocks, num_gpus) as rows:
                for row in rows:
                    stage.wall_seconds = time.perf_counter() - started
                    bar.update(1)
                    if row["error"]:
                        error = json.loads(row["error"])
                        if error["kind"] != PartError.__name__:
                            raise error_of_worker(title, **error)
                        undone.append(f"part {row['index']}: {error['text']}")
                        if len(undone) >= UNDONE_BEFORE_ANY_DONE and not stage.num_parts:
                            break
                        continue
                    summary = json.loads(row["summary"])
                    stage.add(json.loads(row["usage"]), summary.get(unit, 1))
                    yield summary
        except ray.exceptions.RayError as error:
            raise WorkerError(f"{title}: a worker died: {error}; finished parts are safe, run it again") from error
        _Notes(run_id).clear()
        if undone:
            done = f"{stage.num_parts} of {len(parts)} parts are done"
            raise WorkerError(f"{title}: {done}, {len(undone)} could not be: {'; '.join(undone[:3])}")

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

    def run_training(
        self, function: Callable[..., Any], *arguments: Any, num_workers: int, scratch: str, device: str = "cpu"
    ) -> Any:
        """Run one function on `num_workers` ranks of one process group (Ray Train); returns what rank 0 returns.

        A rank that dies, or a node that is lost, ends all ranks; they are started anew and call the function again, which
        therefore has to go on from its own last checkpoint.

        Args:
            function: returns something JSON-able. One CPU each, and a GPU where `device` is not `cpu` and there are any.
            scratch: folder that all nodes see, for Ray's own notes; removed at the end.

        Raises:
            RecaptionError: what the function raised as one, at once. WorkerError: anything else, after all restarts.
        """
        run_id = uuid.uuid4().hex
        for _ in range(CONTROLLER_RESTARTS + 1):
            self._start()
            failure = self._fit(_Rank(function, arguments, run_id), num_workers, scratch, device)
            notes = _Notes(run_id)
            end = notes.read("end")
            notes.clear()
            shutil.rmtree(scratch, ignore_errors=True)
            if "error" in end:
                raise error_of_worker("train", **end["error"])
            if failure is None:
                return end["returned"]
            if not self.address:
                self.stop()  # Ray Train may have left the processors of the dead ranks reserved
        raise WorkerError(f"train: its ranks died again and again: {failure}; the last checkpoint is safe") from failure

    def _fit(self, rank: _Rank, num_workers: int, scratch: str, device: str) -> Exception | None:
        """One run of Ray Train, restarts included; what it failed with."""
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
        except Exception as error:  # Ray's kinds of failure have changed places from version to version
            return error
        return None


def ray_report() -> dict[str, str]:
    """Version of Ray, for `recaption doctor`."""
    import ray

    return {"version": ray.__version__}
