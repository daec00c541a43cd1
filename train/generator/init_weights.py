"""Initial weights from a checkpoint of the same transformer, for example one trained on images only.

    load_init_weights("RUN/train/images", model, config).config          # {"step": 2000, "weights": "0f3c..."}

An image is a clip of one frame, at frame position 0, where the rotation of RoPE is the identity. So a video model
initialised from an image model gives the same images, bit for bit. Missing weights of positions, of a hint or of scalars
start so that they change nothing; anything else missing is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.weights import weights_hash
from train.backbones.bases import config_of_base, read_base, weights_over_base
from train.backbones.pretrained.unet import PREFIX
from train.checkpoint import step_folder as checkpoint
from train.checkpoint.same_model import differences, weights_meaning
from train.checkpoint.trained_part import FrozenBase
from train.checkpoint.weights import load_weights

OPTIONAL_WEIGHTS = {
    "absolute_positions": "x_embedder.pos_embedder.",
    "hint_width": "x_embedder.hint_embedder.",
    "scalars": "t_embedder.scalar_embedders.",
}
"""Settings of a backbone that add weights, and part of their names: the new ones change nothing until they are trained."""


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Where a model's initial weights came from."""

    step: int
    base: FrozenBase
    """The checkpoint, or the one that it is over itself."""
    names: frozenset[str]
    """Weights of the model that it has; the others are new."""
    weights_hash: str

    @property
    def config(self) -> dict[str, Any]:
        """For the config of the new training."""
        return {"step": self.step, "weights": self.weights_hash}

    def freeze_base(self, model: nn.Module) -> None:
        """No gradients for the weights of the image model that are not new."""
        for name, parameter in model.named_parameters():
            if name in self.names and name.startswith(model.base_prefix):  # type: ignore[arg-type]
                parameter.requires_grad_(False)


def load_init_weights(path: str, model: nn.Module, config: dict[str, Any]) -> InitialWeights:
    """Load the (EMA) weights of the checkpoint at `path`, or of a U-Net (`diffusers:ID`), into `model` or its base.

    Args:
        config: checkpoint config of the new training.

    Raises:
        UsageError: no checkpoint there.
        CheckpointMismatchError: of another task, backbone, size, text encoder, compressor or prediction type.
    """
    if path.startswith(PREFIX):
        return _load_unet(path, model)
    found = checkpoint.find(path)
    saved, weights = checkpoint.load_model(found.path, task="dit")
    weights = weights_over_base(saved, weights, found.path)
    digest, ours, prefix = weights_hash(weights), checkpoint.as_json(config), ""
    network: Any = model
    of_base = config_of_base(ours)
    if of_base is not None and saved["backbone"]["name"] == of_base["backbone"]["name"]:
        network, ours, prefix = model.base, of_base, str(model.base_prefix)
    load_weights(network, _with_optional(saved, ours, network, weights, found.path), found.path)
    base = FrozenBase(spec=found.path, weights_hash=digest, prefix=prefix)
    if not prefix and saved.get("base"):  # temporal layers over a base that lies elsewhere
        base = FrozenBase(**saved["base"])
    names = frozenset(prefix + name for name in weights)
    return InitialWeights(step=found.step, base=base, names=names, weights_hash=digest)


def _load_unet(spec: str, model: nn.Module) -> InitialWeights:
    if "unet" not in model.config:  # type: ignore[operator]
        raise UsageError(f"--init-from {spec}: a U-Net of diffusers takes temporal layers with backbone temporal-unet")
    weights, prefix = read_base(spec), str(model.base_prefix)
    load_weights(model.base, weights, spec)  # type: ignore[type-var]
    digest = weights_hash(weights)
    base = FrozenBase(spec=spec, weights_hash=digest, prefix=prefix)
    return InitialWeights(step=0, base=base, names=frozenset(prefix + name for name in weights), weights_hash=digest)


def _with_optional(
    saved: dict[str, Any], config: dict[str, Any], model: nn.Module, weights: dict[str, Tensor], path: str
) -> dict[str, Tensor]:
    """The weights with what may be missing in them; raises CheckpointMismatchError where they are of another model."""
    theirs, ours = weights_meaning(saved), weights_meaning(config)
    added = [name for name in OPTIONAL_WEIGHTS if ours.get(f"backbone {name}") and not theirs.get(f"backbone {name}")]
    for name in added:
        theirs[f"backbone {name}"] = ours[f"backbone {name}"]
    differing = differences(theirs, ours)
    if differing:
        raise CheckpointMismatchError(
            f"init_from {path} is another model ({'; '.join(differing[:3])}): train with its settings, or from scratch"
        )
    weights = dict(weights)
    for name, own in model.state_dict().items():
        if any(OPTIONAL_WEIGHTS[setting] in name for setting in added):
            # positions are learned sooner from weights that are not zero; hints and scalars start with a zero layer anyway
            weights[name] = torch.zeros_like(own) if OPTIONAL_WEIGHTS["absolute_positions"] in name else own
    return weights
