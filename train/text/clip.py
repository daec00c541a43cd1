"""The text encoder of CLIP (open_clip) as a text tower."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recaption import hub
from recaption.errors import CheckpointMismatchError, UsageError
from train.text.interface import _hash_of_weights

CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
"""What open_clip's own folders hold, and what `clip:FOLDER` takes."""


# --- CLIP -------------------------------------------------------------------------------------------------------------


class ClipTower:
    """The text half of a CLIP of open_clip; its image half is neither built nor read."""

    def __init__(self, place: str, device: torch.device | str = "cpu") -> None:
        """Args: place: MODEL/TAG, MODEL/path of a file of weights, MODEL/random, or a folder with `CLIP_FILES`."""
        from open_clip.model import _build_text_tower

        from recaption.captioners.videococa.tokenizer import ClipTokenizer

        config, weights = clip_config(place), _clip_weights(place)
        text = dict(config["text_cfg"]) | {"output_tokens": True}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _build_text_tower(config["embed_dim"], text, quick_gelu=bool(config.get("quick_gelu")))
        if weights is not None:
            _fill(model, weights, place)
        self.model = model.to(device).eval().requires_grad_(False)
        self.tokenizer = ClipTokenizer(int(model.context_length))
        self.device = device
        self.width, self.pooled_width = int(model.width), int(config["embed_dim"])
        self.weights_hash = _hash_of_weights(self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Last states from the start token to the end token; pooled = that of the end token, projected."""
        ids_SM = self.tokenizer.encode(texts).to(self.device)
        pooled_SC, states_SMC = self.model(ids_SM)
        lengths_S = (ids_SM == self.tokenizer.special.end).int().argmax(dim=1) + 1
        mask_SM = torch.arange(ids_SM.shape[1], device=ids_SM.device) < lengths_S[:, None]
        return states_SMC[mask_SM].float(), lengths_S, pooled_SC.float()


def clip_config(place: str) -> dict[str, Any]:
    """open_clip's config of the model at `place`, without weights.

    Raises:
        UsageError: no such model, or one whose text tower or tokenizer is another package's.
    """
    import open_clip

    if os.path.isdir(place):
        file = Path(place) / CLIP_FILES[0]
        if not file.is_file():
            raise UsageError(f"text encoder clip:{place} is a folder without {CLIP_FILES[0]}, which open_clip writes")
        config = json.loads(file.read_text())["model_cfg"]
    else:
        architecture, _, pretrained = place.partition("/")
        config = open_clip.get_model_config(architecture)
        if config is None:
            raise UsageError(f"open_clip has no model named {architecture!r}: write clip:MODEL/TAG (e.g. ViT-L-14)")
        if not pretrained:
            raise UsageError(
                f"text encoder clip:{place} names no weights: write clip:{place}/TAG or clip:{place}//file"
            )
        tag = open_clip.get_pretrained_cfg(architecture, pretrained)
        config = config | ({"quick_gelu": tag["quick_gelu"]} if "quick_gelu" in (tag or {}) else {})
    text = config["text_cfg"]
    if "hf_model_name" in text or "hf_tokenizer_name" in text or "multimodal_cfg" in config:
        raise UsageError(
            f"text encoder clip:{place}: only CLIPs with open_clip's own text tower and tokenizer "
            "(a CoCa is captioner:open_clip:MODEL/TAG)"
        )
    return dict(config)


def _clip_weights(place: str) -> Path | None:
    """The file that holds them; None for random ones."""
    from recaption.captioners.videococa.checkpoint import find_open_clip_weights

    if os.path.isdir(place):
        return Path(place) / CLIP_FILES[1]
    architecture, _, pretrained = place.partition("/")
    return None if pretrained == "random" else find_open_clip_weights(architecture, pretrained, kind="clip")


def _fill(model: torch.nn.Module, weights: Path, place: str) -> None:
    from safetensors.torch import load_file

    try:
        is_safe = weights.suffix == ".safetensors"
        state = load_file(weights) if is_safe else torch.load(weights, map_location="cpu", weights_only=True)
        state = {name.removeprefix("module."): tensor for name, tensor in state.get("state_dict", state).items()}
        # CLIPs in open_clip's newer layout keep their text half under a name of its own
        own = {
            name.removeprefix("text."): tensor for name, tensor in state.items() if name.startswith("text.")
        } or state
        model.load_state_dict({name: own[name] for name in model.state_dict()})
    except Exception as error:  # safetensors, pickle and torch have no root in common
        problem = hub.first_line(error)
        raise CheckpointMismatchError(f"{weights} does not hold weights of clip:{place}: {problem}") from error
