"""The frozen networks behind text encoders: T5, CLIP, a captioner's text tower, and several of them at once.

    tower = open_tower("clip:ViT-L-14/laion2b_s32b_b82k", "cpu")
    text_MC, lengths_S, pooled_SC = tower.encode(["a red circle moves left"])

Shape suffixes: M text tokens of all texts, S texts, C width.

Several at once (`t5:ID+clip:MODEL/TAG`): a text has the tokens of the first, then those of the second, and so on. Each
tower has columns of its own, the others are zero in its tokens, so that the transformer's one projection of text is one
projection per tower. Pooled vectors lie end to end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recaption import hub
from recaption.errors import CheckpointMismatchError, UsageError

MAX_TEXT_TOKENS = 256
"""Longer captions are cut (T5 only; CLIP and a captioner's tower have limits of their own)."""
SPECS = "captioner:tiny, captioner:SPEC, t5:ID (or t5:FOLDER), clip:MODEL/TAG (or clip:FOLDER), or several joined by +"
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
"""What open_clip's own folders hold, and what `clip:FOLDER` takes."""


class TextTower(Protocol):
    """Token states and a pooled vector for each text."""

    width: int
    pooled_width: int
    weights_hash: str

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(text_MC concatenated, lengths_S, pooled_SC)."""
        ...


def parse(spec: str) -> list[tuple[str, str]]:
    """(kind, name) of each tower that `spec` names.

    Raises:
        UsageError: not such a spec.
    """
    parts = [part.partition(":") for part in re.split(r"\+(?=(?:captioner|t5|clip):)", spec)]
    if any(kind not in ("captioner", "t5", "clip") or not name for kind, _, name in parts):
        raise UsageError(f"unknown text encoder {spec!r}: use {SPECS}")
    if len({*parts}) != len(parts):
        raise UsageError(f"text encoder {spec!r} names one tower twice")
    return [(kind, name) for kind, _, name in parts]


def open_tower(spec: str, device: torch.device | str = "cpu") -> TextTower:
    """One tower, weights and all.

    Raises:
        UsageError: no such model, or one of another kind.
        WeightsUnreachableError: neither on disk nor to be downloaded; within seconds.
    """
    ((kind, name),) = parse(spec)
    towers: dict[str, Callable[[str, torch.device | str], TextTower]]
    towers = {"captioner": CaptionerTower, "t5": T5Tower, "clip": ClipTower}
    return towers[kind](name, device)


class JointTower:
    """Several towers as one."""

    def __init__(self, towers: Sequence[TextTower]) -> None:
        self.towers = towers
        self.width = sum(tower.width for tower in towers)
        self.pooled_width = sum(tower.pooled_width for tower in towers)
        self.weights_hash = "+".join(tower.weights_hash for tower in towers)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        encoded = [tower.encode(texts) for tower in self.towers]
        lengths_KS = torch.stack([lengths_S.cpu() for _, lengths_S, _ in encoded])
        text_MC = torch.zeros(int(lengths_KS.sum()), self.width)
        starts = [0, *accumulate(lengths_KS.T.flatten().tolist())]  # text after text, in each tower after tower
        first_column = 0
        for number, (tower, (part_MC, lengths_S, _)) in enumerate(zip(self.towers, encoded)):
            columns = slice(first_column, first_column + tower.width)
            for text, piece_MC in enumerate(part_MC.float().cpu().split(lengths_S.tolist())):
                start = starts[text * len(self.towers) + number]
                text_MC[start : start + len(piece_MC), columns] = piece_MC
            first_column += tower.width
        return text_MC, lengths_KS.sum(0), torch.cat([pooled_SC.float().cpu() for _, _, pooled_SC in encoded], dim=1)


class CaptionerTower:
    """The text tower of a captioner."""

    def __init__(self, spec: str, device: torch.device | str = "cpu") -> None:
        from recaption.captioners import load_captioner

        captioner = load_captioner(spec, device=str(device))
        self._tower = captioner.text_tower
        self.width, self.pooled_width = self._tower.width, self._tower.pooled_width
        self.weights_hash = captioner.weights_hash

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self._tower.encode(texts)


# --- T5 ---------------------------------------------------------------------------------------------------------------


class T5Tower:
    """The encoder half of a T5, mT5 or UMT5."""

    def __init__(self, model_id: str, device: torch.device | str = "cpu") -> None:
        config, encoder_class = t5_config(model_id)
        self.tokenizer = t5_tokenizer(model_id)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        what, give, local_only = _t5_place(model_id)
        try:
            model = encoder_class.from_pretrained(model_id, local_files_only=local_only, dtype=dtype)
        except (OSError, ValueError) as error:
            raise hub.unreachable(what, error, give) from error
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device
        self.width = self.pooled_width = int(config.d_model)
        self.weights_hash = _hash_of_weights(self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Last states of the real tokens; pooled = their mean."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt"
        ).to(self.device)
        states = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.float()
        mask = tokens.attention_mask.bool()
        pooled_SC = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return states[mask], mask.sum(1), pooled_SC


def t5_config(model_id: str) -> tuple[Any, Any]:
    """(config, class of the encoder), without weights; raises as `open_tower`."""
    import transformers

    what, give, local_only = _t5_place(model_id)
    try:
        config = transformers.AutoConfig.from_pretrained(model_id, local_files_only=local_only)
    except (OSError, ValueError) as error:
        raise hub.unreachable(what, error, give) from error
    classes = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    if config.model_type not in classes:
        raise UsageError(f"{model_id} is a {config.model_type!r} model; t5: takes {', '.join(classes)}")
    return config, getattr(transformers, classes[config.model_type])


def t5_tokenizer(model_id: str) -> Any:
    from transformers import AutoTokenizer

    _, give, local_only = _t5_place(model_id)
    try:
        return AutoTokenizer.from_pretrained(model_id, local_files_only=local_only)
    except (OSError, ValueError) as error:
        raise hub.unreachable(f"the tokenizer of t5:{model_id}", error, give) from error


def _t5_place(model_id: str) -> tuple[str, str, bool]:
    """(the weights in the user's words, what to give instead, whether they are on this disk)."""
    what = f"text encoder t5:{model_id}"
    give = "give a folder with config.json, the tokenizer and model.safetensors as t5:FOLDER"
    return what, give, hub.is_on_disk(model_id, what=what, give=give)


def _hash_of_weights(model: torch.nn.Module) -> str:
    """First 12 hex digits over names, shapes and a part of the numbers: enough to tell two sets of weights apart
    without reading gigabytes twice."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        sample = parameter.flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample)
    return digest.hexdigest()[:12]


# --- CLIP -------------------------------------------------------------------------------------------------------------


class ClipTower:
    """The text half of a CLIP of open_clip; its image half is neither built nor read."""

    def __init__(self, place: str, device: torch.device | str = "cpu") -> None:
        """Args: place: MODEL/TAG, MODEL/path of a file of weights, MODEL/random, or a folder with `CLIP_FILES`."""
        from open_clip.model import _build_text_tower

        from recaption.captioners.vocabulary import ClipVocabulary

        config, weights = clip_config(place), _clip_weights(place)
        text = dict(config["text_cfg"]) | {"output_tokens": True}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _build_text_tower(config["embed_dim"], text, quick_gelu=bool(config.get("quick_gelu")))
        if weights is not None:
            _fill(model, weights, place)
        self.model = model.to(device).eval().requires_grad_(False)
        self.vocabulary = ClipVocabulary(int(model.context_length))
        self.device = device
        self.width, self.pooled_width = int(model.width), int(config["embed_dim"])
        self.weights_hash = _hash_of_weights(self.model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Last states from the start token to the end token; pooled = that of the end token, projected."""
        ids_SM = self.vocabulary.encode(texts).to(self.device)
        pooled_SC, states_SMC = self.model(ids_SM)
        lengths_S = (ids_SM == self.vocabulary.special.end).int().argmax(dim=1) + 1
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
    from recaption.captioners.checkpoint import find_weights

    if os.path.isdir(place):
        return Path(place) / CLIP_FILES[1]
    architecture, _, pretrained = place.partition("/")
    return None if pretrained == "random" else find_weights(architecture, pretrained, kind="clip")


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
