"""Text towers by spec: T5, CLIP, a captioner's text tower, or several concatenated.

    tower = load_tower("clip:ViT-L-14/laion2b_s32b_b82k", "cpu")
    text_MC, lengths_S, pooled_SC = tower.encode(["a red circle moves left"])

Shape suffixes: M text tokens of all texts, S texts, K towers, C width.

Concatenation (`t5:ID+clip:MODEL/TAG`): a text has the tokens of the first tower, then those of the second, and so on.
Each tower has its own channels, zero in the other towers' tokens, so that the transformer's single text projection acts
as one projection per tower. Pooled vectors are concatenated along channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.text.clip import ClipTextEncoder
from train.text.interface import TextTower
from train.text.t5 import T5Encoder

SPECS = "captioner:tiny, captioner:SPEC, t5:ID (or t5:FOLDER), clip:MODEL/TAG (or clip:FOLDER), or several joined by +"


def parse(spec: str) -> list[tuple[str, str]]:
    """Split a spec into (kind, name) per tower.

    Raises:
        UsageError: invalid spec.
    """
    parts = [part.partition(":") for part in re.split(r"\+(?=(?:captioner|t5|clip):)", spec)]
    if any(kind not in ("captioner", "t5", "clip") or not name for kind, _, name in parts):
        raise UsageError(f"unknown text encoder {spec!r}: use {SPECS}")
    if len({*parts}) != len(parts):
        raise UsageError(f"text encoder {spec!r} names the same tower twice")
    return [(kind, name) for kind, _, name in parts]


def load_tower(spec: str, device: torch.device | str = "cpu") -> TextTower:
    """Load a single tower with its weights.

    Raises:
        UsageError: no such model, or one of another kind.
        WeightsUnreachableError: neither on disk nor downloadable; raised within seconds.
    """
    ((kind, name),) = parse(spec)
    towers: dict[str, Callable[[str, torch.device | str], TextTower]]
    towers = {"captioner": CaptionerTextEncoder, "t5": T5Encoder, "clip": ClipTextEncoder}
    return towers[kind](name, device)


class ConcatTextEncoder:
    """Concatenates the tokens of several towers, each in its own channels."""

    def __init__(self, towers: Sequence[TextTower]) -> None:
        self.towers = towers
        self.width = sum(tower.width for tower in towers)
        self.pooled_width = sum(tower.pooled_width for tower in towers)
        self.weights_hash = "+".join(tower.weights_hash for tower in towers)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        encoded = [tower.encode(texts) for tower in self.towers]
        lengths_KS = torch.stack([lengths_S.cpu() for _, lengths_S, _ in encoded])
        text_MC = torch.zeros(int(lengths_KS.sum()), self.width)
        starts = [0, *accumulate(lengths_KS.T.flatten().tolist())]  # text by text, within a text tower by tower
        first_channel = 0
        for tower_index, (tower, (tower_MC, lengths_S, _)) in enumerate(zip(self.towers, encoded)):
            channels = slice(first_channel, first_channel + tower.width)
            for text_index, tokens_MC in enumerate(tower_MC.float().cpu().split(lengths_S.tolist())):
                start = starts[text_index * len(self.towers) + tower_index]
                text_MC[start : start + len(tokens_MC), channels] = tokens_MC
            first_channel += tower.width
        return text_MC, lengths_KS.sum(0), torch.cat([pooled_SC.float().cpu() for _, _, pooled_SC in encoded], dim=1)


class CaptionerTextEncoder:
    """The text tower of a captioner."""

    def __init__(self, spec: str, device: torch.device | str = "cpu") -> None:
        from recaption.captioners.registry import load_captioner

        captioner = load_captioner(spec, device=str(device))
        self._tower = captioner.text_tower
        self.width, self.pooled_width = self._tower.width, self._tower.pooled_width
        self.weights_hash = captioner.weights_hash

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self._tower.encode(texts)
