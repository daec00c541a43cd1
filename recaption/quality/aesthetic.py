"""Aesthetic score: a linear head over the image embedding of a CLIP, as LAION's predictors are.

    ScoreSettings(models=("aesthetic",), aesthetic_weights="sac+logos+ava1-l14-linearMSE.pth",
                  aesthetic_tower="ViT-L-14-quickgelu//models/ViT-L-14.safetensors")

Both sets of weights are only on hubs: without the two files the scorer is absent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.quality.model_scorers import AbsentError

if TYPE_CHECKING:
    from torch import Tensor

    from recaption.quality.scores import ScoreSettings


class AestheticScorer:
    """Mean over frames of head(embedding of length 1)."""

    columns = ("aesthetic",)

    def __init__(self, settings: ScoreSettings) -> None:
        if reason := self.why_absent(settings):
            raise AbsentError(reason)
        import open_clip

        architecture, weights = _tower(settings)
        if open_clip.get_model_config(architecture) is None:
            raise UsageError(
                f"open_clip has no model {architecture!r} (aesthetic_tower = {settings.aesthetic_tower!r})"
            )
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=weights)
        except RuntimeError as error:
            raise CheckpointMismatchError(f"{weights} does not hold weights of {architecture}: {error}") from error
        self._model = model.eval().requires_grad_(False)
        self._preprocess = preprocess
        self._layers = read_head(settings.aesthetic_weights, width=int(model.visual.output_dim))

    @staticmethod
    def why_absent(settings: ScoreSettings) -> str | None:
        files = {"aesthetic_weights": settings.aesthetic_weights, "aesthetic_tower": _tower(settings)[1]}
        for name, path in files.items():
            if not path:
                return f"{name} names no file"
            if not os.path.isfile(path):
                return f"{name}: there is no file {path}"
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


def _tower(settings: ScoreSettings) -> tuple[str, str]:
    """`ViT-L-14//models/a.pt` -> ("ViT-L-14", "/models/a.pt")."""
    architecture, _, weights = settings.aesthetic_tower.partition("/")
    return architecture, weights


def read_head(path: str, *, width: int) -> list[tuple[Tensor, Tensor]]:
    """Layers (weight, bias) of a head from `width` values to one, in the order of the file: LAION's have one layer, or five
    without activations between them.

    Raises:
        CheckpointMismatchError: the file holds something else.
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
        raise CheckpointMismatchError(f"{path} has layers {shapes}, not a chain from {width} values to 1")
    return layers
