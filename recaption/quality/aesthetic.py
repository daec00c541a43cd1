"""Aesthetic score: a linear head on CLIP image embeddings, as in LAION's aesthetic predictors.

    ScoreSettings(models=("aesthetic",), aesthetic_weights="sac+logos+ava1-l14-linearMSE.pth",
                  aesthetic_tower="ViT-L-14-quickgelu//models/ViT-L-14.safetensors")

Both sets of weights are distributed on hubs only: without the two local files the scorer is unavailable.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.quality.model_scorers import ScorerUnavailableError

if TYPE_CHECKING:
    from torch import Tensor

    from recaption.quality.scores import ScoreSettings


class AestheticScorer:
    """Mean over frames of the head applied to the L2-normalised CLIP image embedding."""

    columns = ("aesthetic",)

    def __init__(self, settings: ScoreSettings) -> None:
        if reason := self.unavailable_reason(settings):
            raise ScorerUnavailableError(reason)
        import open_clip

        architecture, weights = _parse_tower(settings)
        if open_clip.get_model_config(architecture) is None:
            raise UsageError(
                f"open_clip has no model {architecture!r} (aesthetic_tower = {settings.aesthetic_tower!r})"
            )
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=weights)
        except RuntimeError as error:
            raise CheckpointMismatchError(
                f"{weights} does not match the architecture {architecture}: {error}"
            ) from error
        self._model = model.eval().requires_grad_(False)
        self._preprocess = preprocess
        self._layers = load_head(settings.aesthetic_weights, width=int(model.visual.output_dim))

    @staticmethod
    def unavailable_reason(settings: ScoreSettings) -> str | None:
        files = {"aesthetic_weights": settings.aesthetic_weights, "aesthetic_tower": _parse_tower(settings)[1]}
        for name, path in files.items():
            if not path:
                return f"{name} is not set"
            if not os.path.isfile(path):
                return f"{name}: file not found: {path}"
        return None

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        import torch
        import torch.nn.functional as F

        images = torch.stack([self._preprocess(Image.fromarray(frame)) for frame in frames_THWC])
        with torch.inference_mode():
            x_TD = F.normalize(self._model.encode_image(images).float(), dim=-1)
            for weight, bias in self._layers:
                x_TD = F.linear(x_TD, weight, bias)
        return {"aesthetic": float(x_TD.mean())}


def _parse_tower(settings: ScoreSettings) -> tuple[str, str]:
    """(architecture, path of the weights): `ViT-L-14//models/a.pt` -> ("ViT-L-14", "/models/a.pt")."""
    architecture, _, weights = settings.aesthetic_tower.partition("/")
    return architecture, weights


def load_head(path: str, *, width: int) -> list[tuple[Tensor, Tensor]]:
    """Load the (weight, bias) layers of a linear head from `width` values to one, in the file's order.

    LAION's heads have one layer, or five without activations between them.

    Raises:
        CheckpointMismatchError: the file does not hold such layers.
    """
    import torch
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
        names = [name.removesuffix("weight") for name in state if name.endswith("weight")]
        layers = [(state[name + "weight"].float(), state[name + "bias"].float()) for name in names]
    except Exception as error:
        raise CheckpointMismatchError(f"{path} does not hold a linear head: {error!r}") from error
    widths = [width, *(len(weight) for weight, _ in layers)]
    if not layers or widths[-1] != 1 or [weight.shape[-1] for weight, _ in layers] != widths[:-1]:
        shapes = [tuple(weight.shape) for weight, _ in layers]
        raise CheckpointMismatchError(f"{path} has layers {shapes}, expected a chain from {width} values to 1")
    return layers
