"""`recaption train captioner|compressor|dit`: builds the task and runs the training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from typing import Any

from jobs.cluster.cluster import Cluster
from jobs.recipe.settings import Recipe, TrainCaptioner, TrainCompressor, TrainDit
from jobs.train.tasks import TASKS
from recaption.errors import UsageError
from recaption.folder_lock import FolderLock
from recaption.run_folder import RunFolder
from train.checkpoint import step_folder as checkpoint
from train.engine.settings import TrainerSettings
from train.engine.trainer import TrainResult, train

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def train_model(
    model: str,
    run_uri: str,
    name: str,
    recipe: Recipe,
    cluster: Cluster,
    *,
    num_steps: int | None = None,
    num_ranks: int = 1,
    use_gpu: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Train one model into RUN/train/NAME, on the Ray cluster at `--address` or in this process.

    Args:
        num_ranks: data-parallel ranks started by Ray Train, each on a GPU if there are any. Under torchrun leave it at 1;
            every rank calls this function.
        use_gpu: require GPUs: an error if there are none.

    Raises:
        UsageError: unknown model, a run folder that is not on a local disk, or no latents.
        CheckpointMismatchError: RUN/train/NAME holds another model.
    """
    if model not in TASKS:
        raise UsageError(f"train {model!r}: there are {', '.join(TASKS)}")
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: use letters, digits, - and _ only")
    run = RunFolder(run_uri)
    if not run.is_local:
        raise UsageError(f"--run {run_uri}: training writes its checkpoints to a folder on disk (mount the bucket)")
    settings: TrainCaptioner | TrainCompressor | TrainDit = getattr(recipe, f"train_{model}")
    trainer = settings.trainer
    if num_steps is not None:
        trainer = dataclasses.replace(trainer, num_steps=num_steps)
    if use_gpu and trainer.device not in ("auto", "cuda"):
        raise UsageError(f"--use-gpu and the trainer's device {trainer.device!r} exclude each other: leave one out")
    if use_gpu:
        trainer = dataclasses.replace(trainer, device="cuda")
    arguments = (model, run.uri, recipe, trainer, run.path("train", name), resume, progress)
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":  # under torchrun every rank comes here
            stack.enter_context(FolderLock(run, f"recaption train {model} --name {name}", name=f"train/{name}.lock"))
        result = _train(arguments, cluster, num_ranks=num_ranks)
    summary = {**result, "model": model, "name": name}
    if model == "dit" and recipe.train_dit.evaluation.at_end and os.environ.get("RANK", "0") == "0":
        summary["evaluation"] = evaluate_model(run_uri, name, recipe, cluster, progress=progress)["measures"]
    return summary


def _train(arguments: tuple[Any, ...], cluster: Cluster, *, num_ranks: int) -> dict[str, Any]:
    """Call `train_here` with these arguments in this process, on ranks of its own, or on the cluster at `--address`."""
    _, _, _, trainer, folder, resume, progress = arguments
    if num_ranks > 1:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("--num-workers starts ranks of its own: leave it out under torchrun")
        if not resume and checkpoint.newest(os.path.join(folder, "checkpoints")):
            raise UsageError(f"{folder} already holds checkpoints; resume them or use another --name")
        return cluster.run_training(
            train_rank,
            *arguments[:-2],
            progress,
            num_workers=num_ranks,
            scratch=os.path.join(folder, "ray"),
            device=trainer.device,
        )
    if cluster.address:
        return dataclasses.asdict(cluster.run_once(train_here, *arguments, device=trainer.device))
    return dataclasses.asdict(train_here(*arguments))


def evaluate_model(
    run_uri: str, name: str, recipe: Recipe, cluster: Cluster, *, progress: bool = True
) -> dict[str, Any]:
    """Evaluate the newest checkpoint of RUN/train/NAME without training, on the machine that would train.

    Raises:
        UsageError: as `jobs.train.evaluate.evaluate_training`.
    """
    arguments = (run_uri, name, recipe, progress)
    if cluster.address:
        return cluster.run_once(evaluate_here, *arguments, device=recipe.train_dit.trainer.device)
    return evaluate_here(*arguments)


def evaluate_here(run_uri: str, name: str, recipe: Recipe, progress: bool) -> dict[str, Any]:
    """Evaluate in this process: builds task, sampler and captioner."""
    from jobs.train.evaluate import evaluate_training

    return evaluate_training(
        RunFolder(run_uri), name, recipe, device=recipe.train_dit.trainer.device, progress=progress
    )


def train_rank(
    model: str, run_uri: str, recipe: Recipe, trainer: TrainerSettings, folder: str, progress: bool
) -> dict[str, Any]:
    """`train_here` as one of several ranks; always resumes, as ranks may be restarted at any time."""
    return dataclasses.asdict(train_here(model, run_uri, recipe, trainer, folder, True, progress))


def train_here(
    model: str, run_uri: str, recipe: Recipe, trainer: TrainerSettings, folder: str, resume: bool, progress: bool
) -> TrainResult:
    """Build the task and train it in this process."""
    task = TASKS[model](RunFolder(run_uri), recipe, trainer)
    return train(task, trainer, folder, resume=resume, progress=progress)
