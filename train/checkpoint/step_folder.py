"""What a training run leaves behind: whole folders, or none.

    checkpoints/step-000500/model.safetensors       weights as trained
                            ema.safetensors         their running average in float32: what samples and validation use
                            optimizer.safetensors   moments
                            state.json              step, settings, the log window, sizes of the files beside it
                            config.json             what rebuilds the model, with the name of the task

    config, weights = load_model("RUN/train/dit", task="dit")

A checkpoint is written under a temporary name, flushed to disk and renamed: a folder called step-* is complete. The files
are the same whether one rank wrote them or each of many its shards (safetensors_storage.py); nothing in them is pickled.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import TEMPORARY_SUFFIX
from train.checkpoint.safetensors_storage import SafetensorsReader, SafetensorsWriter
from train.checkpoint.weights import _load_weights

MODEL, EMA, OPTIMIZER, STATE, CONFIG = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
    "config.json",
)


STEP_FOLDER = re.compile(r"step-(\d{6,})$")


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One whole step folder. Weights are read when asked for."""

    path: str
    step: int
    config: dict[str, Any]
    state: dict[str, Any]

    @property
    def has_ema(self) -> bool:
        return os.path.exists(os.path.join(self.path, EMA))

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        return _load_weights(os.path.join(self.path, EMA if ema else MODEL))

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the tensors, which may be parts of sharded ones, by their keys FILE/NAME: each rank reads its own parts.

        Raises:
            CheckpointMismatchError: a tensor is missing here, is of another shape, or is not asked for.
        """
        files = {key.partition("/")[0] for key in tensors}
        for file in sorted(files - self.state["num_bytes"].keys()):
            raise CheckpointMismatchError(
                f"{self.path} holds no {file}: an earlier version wrote it; its weights can be loaded, but to train on, "
                "use another --name"
            )
        reader = SafetensorsReader(self.path, sorted(files))
        metadata = reader.read_metadata()
        saved = metadata.state_dict_metadata
        for key in sorted(saved.keys() | tensors.keys()):
            there, here = _size(saved.get(key)), _size(tensors.get(key))
            # A rank that has no part of a small tensor does not ask for it.
            if there != here and not (here is None and dist.is_initialized()):
                raise CheckpointMismatchError(
                    f"{self.path} does not fit the model: {key} is {there or 'not there'}, the model has {here or 'none'}"
                )
        planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors), metadata, is_coordinator=True)
        plan = planner.create_local_plan()
        reader.read_data(planner.finish_plan(planner.create_global_plan([plan])[0]), planner)


def _size(tensor: Tensor | TensorStorageMetadata | BytesStorageMetadata | None) -> tuple[int, ...] | None:
    """Of the whole that it stands for."""
    if isinstance(tensor, Tensor):
        return tuple(getattr(tensor, "global_shape", tensor.shape))
    return tuple(tensor.size) if isinstance(tensor, TensorStorageMetadata) else None


def write(
    folder: str,
    *,
    step: int,
    config: dict[str, Any],
    state: dict[str, Any],
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    optimizer: Mapping[str, Tensor],
    keep: int,
) -> str:
    """Write `folder`/step-<step> and remove all but the newest `keep` of its kind. Returns the step folder's path."""
    tensors = keyed(MODEL, model) | keyed(EMA, ema or {}) | keyed(OPTIMIZER, optimizer)
    return write_tensors(folder, step=step, config=config, state=state, tensors=tensors, keep=keep)


def keyed(file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the keys that files of tensors have, FILE/NAME."""
    return {f"{file}/{name}": tensor for name, tensor in tensors.items()}


def write_tensors(
    folder: str,
    *,
    step: int,
    config: dict[str, Any],
    state: dict[str, Any],
    tensors: Mapping[str, Tensor],
    keep: int,
    group: dist.ProcessGroup | None = None,
) -> str:
    """As `write`. With a `group` (of a CPU backend) all of its ranks call this, each with its own parts of the tensors."""
    final = os.path.join(folder, f"step-{step:06d}")
    if os.path.exists(final):
        return final
    os.makedirs(folder, exist_ok=True)
    # Only rank 0 makes and renames it; the others are told its name.
    names = [f"{final}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"]
    if group is not None:
        dist.broadcast_object_list(names, src=0, group=group)
    temporary = names[0]

    def on_written() -> None:
        _write_json(os.path.join(temporary, CONFIG), config)
        sizes = {name: os.path.getsize(os.path.join(temporary, name)) for name in sorted(os.listdir(temporary))}
        _write_json(os.path.join(temporary, STATE), {"step": step, **state, "num_bytes": sizes})
        for name in (CONFIG, STATE):
            _flush_to_disk(os.path.join(temporary, name))
        _flush_to_disk(temporary)
        os.replace(temporary, final)
        _flush_to_disk(folder)

    try:
        _write_files(temporary, dict(tensors), on_written, group)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if group is None or dist.get_rank(group) == 0:
        _remove_all_but(folder, keep)
    return final


def _write_files(
    path: str, tensors: dict[str, Tensor], on_written: Callable[[], None], group: dist.ProcessGroup | None
) -> None:
    writer = SafetensorsWriter(path, on_written=on_written)
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if group is not None:
        try:
            dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)
        except CheckpointException as error:  # derives from BaseException; what went wrong is inside
            raise next(iter(error.failures.values()))[0] from error
        return
    planner.set_up_planner(tensors, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(is_coordinator=True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


def _remove_all_but(folder: str, keep: int) -> None:
    for old in _step_folders(folder)[: -max(1, keep)]:
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under its final name.
        doomed = f"{old}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}"
        os.replace(old, doomed)
        shutil.rmtree(doomed)


def remove_temporary(folder: str) -> None:
    """Clear what a killed run left half-written or half-removed."""
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            if name.startswith("step-") and name.endswith(TEMPORARY_SUFFIX):
                shutil.rmtree(os.path.join(folder, name))


def newest(folder: str) -> Checkpoint | None:
    """The whole checkpoint with the highest step in a `checkpoints` folder; damaged ones are passed over, and said."""
    for path in reversed(_step_folders(folder)):
        try:
            return read(path)
        except CheckpointMismatchError as error:
            logger.warning("%s; trying the one before", error)
    return None


def read(path: str) -> Checkpoint:
    """One step folder.

    Raises:
        CheckpointMismatchError: a file is missing, cut off, or not ours.
    """
    try:
        with open(os.path.join(path, STATE), encoding="utf-8") as file:
            state = json.load(file)
        with open(os.path.join(path, CONFIG), encoding="utf-8") as file:
            config = json.load(file)
        step, num_bytes = int(state["step"]), dict(state["num_bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointMismatchError(f"{path} is not a whole checkpoint of this project: {error}") from error
    for name, expected in num_bytes.items():
        file_path = os.path.join(path, name)
        found = os.path.getsize(file_path) if os.path.exists(file_path) else None
        if found != expected:
            raise CheckpointMismatchError(f"{file_path} is damaged: {found} bytes on disk, {expected} were written")
    return Checkpoint(path=path, step=step, config=config, state=state)


def find(path: str) -> Checkpoint:
    """The checkpoint meant by `path`: a step folder, or the newest of a train/<name> or `checkpoints` folder.

    Raises:
        UsageError: no such folder, or no checkpoint in it.
        CheckpointMismatchError: the step folder named is not whole.
    """
    path = os.path.normpath(path)
    if not os.path.isdir(path):
        raise UsageError(f"{path} is not a folder; pass a step-NNNNNN folder or the train/NAME folder that holds them")
    if STEP_FOLDER.search(path) or os.path.exists(os.path.join(path, STATE)):
        return read(path)
    for folder in (os.path.join(path, "checkpoints"), path):
        found = newest(folder)
        if found is not None:
            return found
    raise UsageError(f"{path} holds no checkpoint (no whole checkpoints/step-NNNNNN); has this training saved one yet?")


def load_model(path: str, *, ema: bool = True, task: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a trained model, on the CPU. Averaged weights unless the run had none or `ema` is False.

    Args:
        task: the kind of model that the caller can rebuild (`captioner`, `compressor`, `dit`); None accepts any.

    Raises:
        UsageError: nothing there.
        CheckpointMismatchError: a checkpoint of another task, or a damaged one.
    """
    found = find(path)
    trained = found.config.get("task")
    if task is not None and trained != task:
        raise CheckpointMismatchError(f"{found.path} is a checkpoint of task {trained!r}, where {task!r} is needed")
    return found.config, found.weights(ema=ema and found.has_ema)


def check_same_config(found: Checkpoint, config: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of something else.

    Raises:
        CheckpointMismatchError: names what differs.
    """
    differing = _differences(found.config, plain(config))
    if differing:
        shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
        raise CheckpointMismatchError(
            f"{found.path} was trained with other settings ({shown}); use the old ones or another --name"
        )


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(config))


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for key in sorted(old.keys() | new.keys()):
            rows += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return rows
    return [] if old == new else [f"{name}: {_shown(old)} there, {_shown(new)} now"]


def _shown(value: Any) -> str:
    """Of a list of 700 merges its beginning says enough."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _step_folders(folder: str) -> list[str]:
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
