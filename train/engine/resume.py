"""The checkpoint that a training continues from, and whether it may.

path = newest_path("RUN/train/dit/checkpoints")              # on rank 0 alone; damaged ones are set aside
check_resumable(step_folder.read(path), config, settings)    # CheckpointMismatchError: another model, other settings
"""

from __future__ import annotations

from typing import Any

from recaption.errors import CheckpointMismatchError, UsageError
from train.checkpoint import step_folder
from train.engine.settings import FIXED_ON_RESUME, TrainerSettings

STATE_KEYS = ("settings", "skipped", "batches", "timer", "window", "task")
"""What the training loop keeps in a checkpoint's state.json."""


def newest_path(checkpoints: str) -> str | None:
    """The newest checkpoint that is whole, after cleaning up what a killed run left and setting damaged ones aside.

    One rank looks: file systems that ranks share need not show all of them the same.
    """
    step_folder.remove_temporary(checkpoints)
    step_folder.set_damaged_aside(checkpoints)
    checkpoint = step_folder.newest(checkpoints)
    return None if checkpoint is None else checkpoint.path


def check_resumable(checkpoint: step_folder.Checkpoint, config: dict[str, Any], settings: TrainerSettings) -> None:
    """Refuse to continue from a checkpoint of another training.

    Raises:
        CheckpointMismatchError: of another model or data order, or of settings that a resume cannot change.
        UsageError: it is past the last step.
    """
    step_folder.check_same_config(checkpoint, config)
    missing = [name for name in STATE_KEYS if name not in checkpoint.state]
    if missing:
        raise CheckpointMismatchError(
            f"{checkpoint.path}/{step_folder.STATE_FILE} lacks {', '.join(missing)}: not written by this training; move the "
            "folder away to resume from the checkpoint before it"
        )
    saved = checkpoint.state["settings"]
    for name in FIXED_ON_RESUME:
        then, now = saved.get(name), getattr(settings, name)
        if then != now:
            raise CheckpointMismatchError(
                f"{checkpoint.path} was trained with {name} = {then}, now it is {now}; use the old value or another --name"
            )
    if checkpoint.step > settings.num_steps:
        raise UsageError(f"{checkpoint.path} is past num_steps = {settings.num_steps}; raise num_steps")
