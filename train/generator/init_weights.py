"""Where a transformer's training starts: a checkpoint of the same transformer, for example one trained on images only.

    came_from = load_start("RUN/train/images", model, config)         # {"step": 2000, "weights": "0f3c..."}

An image is a clip of one frame, at frame number 0, where the rotary positions do not turn. So an image model is a video
model that has not seen the later frames yet, and gives the same image at the start, bit for bit. What the new model may
have beside it are absolute positions, which then start at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recaption.errors import CheckpointMismatchError
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.weights import load_weights, weights_hash

GAINED = "absolute_positions"
"""Setting of a backbone whose weights change nothing where they are zero."""


OF_PATH = ("schedule", "prediction", "zero_terminal_snr")
"""What decides the meaning of an answer; which noise levels are trained may change."""


def load_start(path: str, model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """Give `model` the (averaged) weights of the checkpoint at `path`.

    Args:
        config: of the task that is to be trained, as a checkpoint of it will have it.

    Returns:
        What the new training records of it.

    Raises:
        UsageError: no checkpoint there.
        CheckpointMismatchError: of another task, backbone, size, text encoder, compressor or prediction.
    """
    found = checkpoint.find(path)
    saved, weights = checkpoint.load_model(found.path, task="dit")
    there, here = _meaning(saved), _meaning(checkpoint.plain(config))
    is_gaining = f"backbone {GAINED}" in here.keys() - there.keys()
    if is_gaining:
        del here[f"backbone {GAINED}"]
    differing = [
        f"{name} {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise CheckpointMismatchError(
            f"start {found.path} is another model ({'; '.join(differing[:3])}): train with its settings, or without a start"
        )
    if is_gaining:
        weights |= {
            name: torch.zeros_like(own)
            for name, own in model.state_dict().items()
            if name.startswith("position_embedding.")
        }
    load_weights(model, weights, found.path)
    return {"step": found.step, "weights": weights_hash(weights)}


def _meaning(config: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for the weights to mean the same, by name."""
    meaning = {f"backbone {name}": value for name, value in config["backbone"].items() if name != "attention_backend"}
    meaning |= {f"path {name}": config["path"][name] for name in OF_PATH if name in config["path"]}
    return meaning | {
        "patch": config["patch"],
        "text encoder": config["text_encoder"],
        "compressor": config["compressor"]["config"],
    }
