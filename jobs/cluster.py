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

import contextlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from jobs import attempts
from jobs.attempts import STUCK_SECONDS, Attempt, PartError, Record
from jobs.throughput import Throughput, cpu_seconds
from jobs.worker_errors import WorkerError, check_reachable, described, error_of_worker
from recaption.errors import RecaptionError, UsageError

__all__ = ["Cluster", "WorkerError", "ray_report"]

DEATHS_WHILE_STARTING = 5
"""In a row, of one worker, before it has seen any part: weights that do not fit, a library that crashes at import."""

UNDONE_BEFORE_ANY_DONE = 3
"""So many parts that cannot be done, and none that could: more of the same would follow."""

TRAINING_RESTARTS = 16
"""Deaths of ranks in one training until it is given up: each costs the steps since the last checkpoint."""

CONTROLLER_RESTARTS = 2
"""What Ray Train does not restart by itself, such as a rank that dies while the others start."""

UNLIMITED = {"max_restarts": -1, "max_task_retries": -1}
"""Of an actor and of its parts: see above."""


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


class _Notes:
    """A few bytes per part in Ray's own table, which lives as long as the cluster: they outlive a worker."""

    def __init__(self, run_id: str) -> None:
        self.prefix = f"recaption/{run_id}/"

    def read(self, key: str) -> dict[str, Any]:
        from ray.experimental.internal_kv import _internal_kv_get

        return json.loads(_internal_kv_get(self.prefix + key) or b"{}")

    def write(self, key: str, note: dict[str, Any]) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self.prefix + key, json.dumps(note).encode())

    def clear(self, key: str | None = None) -> None:
        """One note, or all of the run."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self.prefix + (key or ""), del_by_prefix=key is None)


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


def ray_report() -> dict[str, str]:
    """Version of Ray, for `recaption doctor`."""
    import ray

    return {"version": ray.__version__}
