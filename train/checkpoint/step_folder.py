"""Checkpoint folders, one per saved step, written atomically.

    checkpoints/step-000500/model.safetensors       weights as trained
                            ema.safetensors         their EMA in float32, used for sampling and validation
                            optimizer.safetensors   AdamW moments
                            state.json              step, settings, log window, sizes of the other files
                            config.json             format version, task, and what rebuilds the model

    config, weights = load_model("RUN/train/dit", task="dit")

A checkpoint is written under a temporary name, flushed to disk and renamed: a folder named step-* is complete. Its files
are the same whether one rank or many wrote them (safetensors_storage.py); nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import TEMPORARY_SUFFIX
from train.checkpoint.safetensors_storage import TensorShard, read_files, shapes_in, write_files
from train.checkpoint.weights import read_weights

FORMAT_VERSION = 1
"""Of the files of a step folder, `format_version` in its config.json. Raise it with every incompatible change."""
MODEL_FILE, EMA_FILE, OPTIMIZER_FILE = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
STATE_FILE, CONFIG_FILE = "state.json", "config.json"
STEP_FOLDER = re.compile(r"step-(\d{6,})$")
logger = logging.getLogger(__name__)


class DamagedCheckpointError(CheckpointMismatchError):
    """A file of a step folder is missing, unreadable or truncated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One complete step folder; tensors are read on demand."""

    path: str
    step: int
    config: dict[str, Any]
    state: dict[str, Any]

    @property
    def has_ema(self) -> bool:
        return os.path.exists(os.path.join(self.path, EMA_FILE))

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        return read_weights(os.path.join(self.path, EMA_FILE if ema else MODEL_FILE))

    def load_into(self, tensors: Mapping[str, Tensor | TensorShard]) -> None:
        """Load in place into tensors or shards keyed by FILE/NAME; each rank reads only its own shards.

        Raises:
            CheckpointMismatchError: a tensor is missing on either side or has another shape.
        """
        read_files(self.path, tensors)


def with_file_prefix(
    file: str, tensors: Mapping[str, Tensor] | Mapping[str, TensorShard]
) -> dict[str, Tensor | TensorShard]:
    """Rename the keys NAME to FILE/NAME."""
    return {f"{file}/{name}": tensor for name, tensor in tensors.items()}


def write(
    folder: str,
    *,
    step: int,
    config: dict[str, Any],
    state: dict[str, Any],
    tensors: Mapping[str, Tensor | TensorShard],
    keep_last: int,
    group: dist.ProcessGroup | None = None,
) -> str:
    """Write `folder`/step-<step> and delete all but the newest `keep_last` checkpoints. Returns the step folder's path.

    A step folder that is there already, and whole, stays; a damaged one is set aside and written again.

    Args:
        tensors: keyed by FILE/NAME.
        group: a CPU group; all its ranks call this, each with its own shards.
    """
    final = os.path.join(folder, f"step-{step:06d}")
    # Rank 0 alone looks, creates and renames the folder; the others only need its temporary name, or to know of none.
    names: list[str | None] = [None]
    if (group is None or dist.get_rank(group) == 0) and not _is_whole(final):
        os.makedirs(folder, exist_ok=True)
        names = [f"{final}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"]
    if group is not None:
        dist.broadcast_object_list(names, src=0, group=group)
    temporary = names[0]
    if temporary is None:
        return final

    def commit() -> None:
        _write_json(os.path.join(temporary, CONFIG_FILE), {"format_version": FORMAT_VERSION, **config})
        sizes = {name: os.path.getsize(os.path.join(temporary, name)) for name in sorted(os.listdir(temporary))}
        _write_json(os.path.join(temporary, STATE_FILE), {"step": step, **state, "num_bytes": sizes})
        for name in (CONFIG_FILE, STATE_FILE):
            _flush_to_disk(os.path.join(temporary, name))
        _flush_to_disk(temporary)
        os.replace(temporary, final)
        _flush_to_disk(folder)

    try:
        write_files(temporary, tensors, on_written=commit, group=group)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if group is None or dist.get_rank(group) == 0:
        _remove_old(folder, keep_last)
    return final


def _remove_old(folder: str, keep_last: int) -> None:
    for path in _step_folders(folder)[: -max(1, keep_last)]:
        # Renamed first: a kill during the removal must not leave half a checkpoint under its final name.
        renamed = f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
        os.replace(path, renamed)
        shutil.rmtree(renamed)


def remove_temporary(folder: str) -> None:
    """Delete what a killed run left half-written or half-removed."""
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            if name.startswith("step-") and name.endswith(TEMPORARY_SUFFIX):
                shutil.rmtree(os.path.join(folder, name))


def set_damaged_aside(folder: str) -> list[str]:
    """Rename the damaged step folders to step-<step>.damaged, so that training writes their steps again; returns those."""
    moved = []
    for path in _step_folders(folder):
        try:
            read(path)
        except DamagedCheckpointError as error:
            moved.append(_set_aside(path))
            logger.warning("%s; moved to %s", error, moved[-1])
    return moved


def _set_aside(path: str) -> str:
    target, number = f"{path}.damaged", 1
    while os.path.exists(target):
        number += 1
        target = f"{path}.damaged-{number}"
    os.replace(path, target)
    return target


def _is_whole(path: str) -> bool:
    """Whether a step folder is there and whole; a damaged one is set aside."""
    if not os.path.exists(path):
        return False
    try:
        read(path)
    except DamagedCheckpointError as error:
        logger.warning("%s; moved to %s", error, _set_aside(path))
        return False
    return True


def newest(folder: str) -> Checkpoint | None:
    """The checkpoint with the highest step in a `checkpoints` folder; damaged ones are skipped with a warning.

    Raises:
        CheckpointMismatchError: another format version.
    """
    for path in reversed(_step_folders(folder)):
        try:
            return read(path)
        except DamagedCheckpointError as error:
            logger.warning("%s; trying the previous checkpoint", error)
    return None


def read(path: str) -> Checkpoint:
    """Open one step folder.

    Raises:
        DamagedCheckpointError: a file is missing, truncated or not ours.
        CheckpointMismatchError: another format version.
    """
    try:
        with open(os.path.join(path, STATE_FILE), encoding="utf-8") as file:
            state = json.load(file)
        with open(os.path.join(path, CONFIG_FILE), encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict) or not isinstance(state, dict):
            raise ValueError(f"{CONFIG_FILE} and {STATE_FILE} must hold one object each")
        step, num_bytes = int(state["step"]), dict(state["num_bytes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} is not a complete checkpoint of this project: {error}") from error
    version = config.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointMismatchError(
            f"{path} has checkpoint format_version {version}, this version of recaption reads {FORMAT_VERSION}: "
            "use the version that wrote it, or train again under another --name"
        )
    for name, expected in num_bytes.items():
        file_path = os.path.join(path, name)
        actual = os.path.getsize(file_path) if os.path.exists(file_path) else None
        if actual != expected:
            raise DamagedCheckpointError(f"{file_path} is damaged: {actual} bytes on disk, {expected} were written")
        if name.endswith(".safetensors"):
            try:
                shapes_in(file_path)  # reads the header only
            except CheckpointMismatchError as error:
                raise DamagedCheckpointError(str(error)) from error
    return Checkpoint(path=path, step=step, config=config, state=state)


def find(path: str) -> Checkpoint:
    """The checkpoint at `path`: a step folder, or the newest of a train/<name> or `checkpoints` folder.

    Raises:
        UsageError: no such folder, or no checkpoint in it.
        CheckpointMismatchError: the step folder is damaged, or of another format version.
    """
    path = os.path.normpath(path)
    if not os.path.isdir(path):
        raise UsageError(f"{path} is not a folder; pass a step-NNNNNN folder or the train/NAME folder that holds them")
    if STEP_FOLDER.search(path) or os.path.exists(os.path.join(path, STATE_FILE)):
        return read(path)
    for folder in (os.path.join(path, "checkpoints"), path):
        checkpoint = newest(folder)
        if checkpoint is not None:
            return checkpoint
    raise UsageError(f"{path} holds no checkpoint (no complete checkpoints/step-NNNNNN); has this run saved one yet?")


def load_model(path: str, *, ema: bool = True, task: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a trained model, on the CPU: the EMA weights, unless the run had none or `ema` is False.

    Args:
        task: the kind of model that the caller can rebuild (`captioner`, `compressor`, `dit`); None accepts any.

    Raises:
        UsageError: no checkpoint there.
        CheckpointMismatchError: a checkpoint of another task, a damaged one, or one of another format version.
    """
    checkpoint = find(path)
    trained_task = checkpoint.config.get("task")
    if task is not None and trained_task != task:
        raise CheckpointMismatchError(
            f"{checkpoint.path} is a checkpoint of task {trained_task!r}, where {task!r} is needed"
        )
    return checkpoint.config, checkpoint.weights(ema=ema and checkpoint.has_ema)


def check_same_config(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint with another config.

    Raises:
        CheckpointMismatchError: names the settings that differ.
    """
    differing = _differences(checkpoint.config, as_json(config))
    if differing:
        shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
        raise CheckpointMismatchError(
            f"{checkpoint.path} was trained with other settings ({shown}); use the old ones or another --name"
        )


def as_json(config: dict[str, Any]) -> dict[str, Any]:
    """A copy with the types that JSON has: tuples become lists."""
    return json.loads(json.dumps(config))


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        differences = []
        for key in sorted(old.keys() | new.keys()):
            differences += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return differences
    return [] if old == new else [f"{name}: {_abbreviated(old)} there, {_abbreviated(new)} now"]


def _abbreviated(value: Any) -> str:
    """`repr`, cut to 80 characters: a vocabulary has hundreds of merges."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _step_folders(folder: str) -> list[str]:
    """Paths of the step folders, lowest step first."""
    if not os.path.isdir(folder):
        return []
    steps = {int(m.group(1)): name for name in os.listdir(folder) if (m := STEP_FOLDER.fullmatch(name))}
    return [os.path.join(folder, steps[step]) for step in sorted(steps)]


def _write_json(path: str, value: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)


def _flush_to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
