"""Initial weights from a checkpoint of the same transformer, for example one trained on images only.

    provenance, base = load_init_weights("RUN/train/images", model, config)         # {"step": 2000, "weights": "0f3c..."}

An image is a clip of one frame, at frame position 0, where the rotation of RoPE is the identity. So a video model
initialised from an image model gives the same images, bit for bit. Missing weights of positions, of a hint or of scalars
start so that they change nothing; anything else missing is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError
from recaption.weights import weights_hash
from train.backbones.bases import config_of_base, weights_over_base
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.same_model import differences, weights_meaning
from train.checkpoint.trained_part import FrozenBase
from train.checkpoint.weights import load_weights

OPTIONAL_WEIGHTS = {
    "absolute_positions": "x_embedder.pos_embedder.",
    "hint_width": "x_embedder.hint_embedder.",
    "scalars": "t_embedder.scalar_embedders.",
}
"""Settings of a backbone that add weights, and their names: the new ones change nothing until they are trained."""


def load_init_weights(path: str, model: nn.Module, config: dict[str, Any]) -> tuple[dict[str, Any], FrozenBase]:
    """Load the (EMA) weights of the checkpoint at `path` into `model`, or under its temporal layers.

    Args:
        config: checkpoint config of the new training.

    Returns:
        Step and weights hash of the checkpoint, for the config of the new training, and the checkpoint as a base of it.

    Raises:
        UsageError: no checkpoint there.
        CheckpointMismatchError: of another task, backbone, size, text encoder, compressor or prediction type.
    """
    found = checkpoint.find(path)
    saved, weights = checkpoint.load_model(found.path, task="dit")
    weights = weights_over_base(saved, weights, found.path)
    digest = weights_hash(weights)
    ours = checkpoint.as_json(config)
    of_base = config_of_base(ours)
    if of_base is not None and saved["backbone"]["name"] == of_base["backbone"]["name"]:
        network, prefix = model.base, str(model.base_prefix)
        _check_same_model(weights_meaning(saved), weights_meaning(of_base), found.path)
    else:
        network, prefix = model, ""
        weights = _with_optional(saved, ours, model, weights, found.path)
    load_weights(network, weights, found.path)  # type: ignore[type-var]
    base = FrozenBase(spec=found.path, weights_hash=digest, prefix=prefix)
    if not prefix and saved.get("base"):  # temporal layers over a base that lies elsewhere
        base = FrozenBase(**saved["base"])
    return {"step": found.step, "weights": digest}, base


def _with_optional(
    saved: dict[str, Any], config: dict[str, Any], model: nn.Module, weights: dict[str, Tensor], path: str
) -> dict[str, Tensor]:
    """The weights with what may be missing in them; raises CheckpointMismatchError where they are of another model."""
    theirs, ours = weights_meaning(saved), weights_meaning(config)
    added = [name for name in OPTIONAL_WEIGHTS if ours.get(f"backbone {name}") and not theirs.get(f"backbone {name}")]
    for name in added:
        theirs[f"backbone {name}"] = ours[f"backbone {name}"]
    _check_same_model(theirs, ours, path)
    weights = dict(weights)
    for name, own in model.state_dict().items():
        if any(name.startswith(OPTIONAL_WEIGHTS[setting]) for setting in added):
            # positions are learned sooner from weights that are not zero; hints and scalars start with a zero layer anyway
            weights[name] = torch.zeros_like(own) if name.startswith(OPTIONAL_WEIGHTS["absolute_positions"]) else own
    return weights


def _check_same_model(theirs: dict[str, Any], ours: dict[str, Any], path: str) -> None:
    differing = differences(theirs, ours)
    if differing:
        raise CheckpointMismatchError(
            f"init_from {path} is another model ({'; '.join(differing[:3])}): train with its settings, or from scratch"
        )
