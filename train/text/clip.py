"""CLIP's text tower (open_clip) as a frozen text encoder."""

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
from recaption.weights import weights_hash

CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
"""Files of an open_clip folder, which `clip:FOLDER` opens."""


class ClipTextEncoder:
    """The text tower of an open_clip CLIP; the vision tower is neither built nor loaded."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """
        Args:
            name: MODEL/TAG, MODEL/path of a weights file, MODEL/random, or a folder with `CLIP_FILES`.
        """
        from open_clip.model import _build_text_tower

        from recaption.captioners.videococa.tokenizer import ClipTokenizer

        config, weights = clip_config(name), _clip_weights(name)
        text = dict(config["text_cfg"]) | {"output_tokens": True}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with hub.damaged_as_mismatch(f"the config of clip:{name}"):
                model = _build_text_tower(config["embed_dim"], text, quick_gelu=bool(config.get("quick_gelu")))
        if weights is not None:
            _load_text_weights(model, weights, name)
        self.weights_hash = weights_hash(model.state_dict())
        self.model = model.to(device).eval().requires_grad_(False)
        self.tokenizer = ClipTokenizer(int(model.context_length))
        self.device = device
        self.width, self.pooled_width = int(model.width), int(config["embed_dim"])

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Last hidden states from the start to the end token; pooled = the projected state of the end token."""
        ids_SM = self.tokenizer.encode(texts).to(self.device)
        pooled_SC, states_SMC = self.model(ids_SM)
        lengths_S = (ids_SM == self.tokenizer.special.end).int().argmax(dim=1) + 1
        mask_SM = torch.arange(ids_SM.shape[1], device=ids_SM.device) < lengths_S[:, None]
        return states_SMC[mask_SM].float(), lengths_S, pooled_SC.float()


def clip_config(name: str) -> dict[str, Any]:
    """open_clip's config of the model `name`, without weights.

    Raises:
        UsageError: no such model, or its text tower or tokenizer is from another package.
    """
    import open_clip

    if os.path.isdir(name):
        file = Path(name) / CLIP_FILES[0]
        if not file.is_file():
            raise UsageError(f"text encoder clip:{name} is a folder without {CLIP_FILES[0]}, which open_clip writes")
        with hub.damaged_as_mismatch(str(file)):
            config = dict(json.loads(file.read_text())["model_cfg"])
            dict(config["text_cfg"])
        hub.check_sizes(config, what=str(file))
    else:
        architecture, _, pretrained = name.partition("/")
        config = open_clip.get_model_config(architecture)
        if config is None:
            raise UsageError(f"open_clip has no model named {architecture!r}: write clip:MODEL/TAG (e.g. ViT-L-14)")
        if not pretrained:
            raise UsageError(f"text encoder clip:{name} names no weights: write clip:{name}/TAG or clip:{name}//file")
        tag = open_clip.get_pretrained_cfg(architecture, pretrained)
        config = config | ({"quick_gelu": tag["quick_gelu"]} if "quick_gelu" in (tag or {}) else {})
    text = config["text_cfg"]
    if "hf_model_name" in text or "hf_tokenizer_name" in text or "multimodal_cfg" in config:
        raise UsageError(
            f"text encoder clip:{name}: only CLIPs with open_clip's own text tower and tokenizer "
            "(a CoCa is captioner:open_clip:MODEL/TAG)"
        )
    return dict(config)


def _clip_weights(name: str) -> Path | None:
    """The weights file; None for random weights."""
    from recaption.captioners.videococa.checkpoint import find_open_clip_weights

    if os.path.isdir(name):
        return Path(name) / CLIP_FILES[1]
    architecture, _, pretrained = name.partition("/")
    return None if pretrained == "random" else find_open_clip_weights(architecture, pretrained, kind="clip")


def _load_text_weights(model: torch.nn.Module, path: Path, name: str) -> None:
    from safetensors.torch import load_file

    try:
        is_safetensors = path.suffix == ".safetensors"
        state = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
        state = {key.removeprefix("module."): tensor for key, tensor in state.get("state_dict", state).items()}
        # open_clip's newer layout (custom_text) prefixes the text tower's weights with "text."
        text_state = {
            key.removeprefix("text."): tensor for key, tensor in state.items() if key.startswith("text.")
        } or state
        model.load_state_dict({key: text_state[key] for key in model.state_dict()})
    except Exception as error:  # safetensors, pickle and torch share no base exception
        problem = hub.first_line(error)
        raise CheckpointMismatchError(f"{path} does not hold weights of clip:{name}: {problem}") from error
