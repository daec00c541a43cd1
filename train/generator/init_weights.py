"""Initial weights from a checkpoint of the same transformer, for example one trained on images only.

    provenance = load_init_weights("RUN/train/images", model, config)         # {"step": 2000, "weights": "0f3c..."}

An image is a clip of one frame, at frame position 0, where the rotation of RoPE is the identity. So a video model
initialised from an image model gives the same images, bit for bit. Missing weights of positions, of a hint or of scalars
start so that they change nothing; anything else missing is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recaption.errors import CheckpointMismatchError
from recaption.weights import weights_hash
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.trained_part import with_base
from train.checkpoint.weights import load_weights

OPTIONAL_WEIGHTS = {
    "absolute_positions": "x_embedder.pos_embedder.",
    "hint_width": "x_embedder.hint_embedder.",
    "scalars": "t_embedder.scalar_embedders.",
}
"""Settings of a backbone that add weights, and their names: the new ones change nothing until they are trained."""
DIFFUSION_KEYS = ("schedule", "prediction", "zero_terminal_snr")
"""Diffusion settings that define what the model predicts; the distribution of trained noise levels may differ."""


def load_init_weights(path: str, model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """Load the (EMA) weights of the checkpoint at `path` into `model`.

    Args:
        config: checkpoint config of the new training.

    Returns:
        Step and weights hash of the checkpoint, for the config of the new training.

    Raises:
        UsageError: no checkpoint there.
        CheckpointMismatchError: of another task, backbone, size, text encoder, compressor or prediction type.
    """
    found = checkpoint.find(path)
    saved, weights = checkpoint.load_model(found.path, task="dit")
    weights = with_base(saved, weights, found.path)
    theirs, ours = _weights_meaning(saved), _weights_meaning(checkpoint.as_json(config))
    added = [name for name in OPTIONAL_WEIGHTS if ours.get(f"backbone {name}") and not theirs.get(f"backbone {name}")]
    for name in added:
        theirs[f"backbone {name}"] = ours[f"backbone {name}"]
    differing = [
        f"{name} {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise CheckpointMismatchError(
            f"init_from {found.path} is another model ({'; '.join(differing[:3])}): "
            "train with its settings, or from scratch"
        )
    for name, own in model.state_dict().items():
        if any(name.startswith(OPTIONAL_WEIGHTS[setting]) for setting in added):
            # positions are learned sooner from weights that are not zero; hints and scalars start with a zero layer anyway
            weights[name] = torch.zeros_like(own) if name.startswith(OPTIONAL_WEIGHTS["absolute_positions"]) else own
    load_weights(model, weights, found.path)
    return {"step": found.step, "weights": weights_hash(weights)}


def _weights_meaning(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint's config that must agree for its weights to be usable, by name."""
    meaning = {f"backbone {name}": value for name, value in config["backbone"].items()}
    meaning |= {f"diffusion {name}": config["diffusion"][name] for name in DIFFUSION_KEYS}
    return meaning | {
        "patch": config["patch"],
        "text encoder": config["text_encoder"],
        "compressor": config["compressor"]["config"],
    }
