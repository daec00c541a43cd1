"""The frozen networks behind text encoders: T5, CLIP, a captioner's text tower, and several of them at once.

    tower = open_tower("clip:ViT-L-14/laion2b_s32b_b82k", "cpu")
    text_MC, lengths_S, pooled_SC = tower.encode(["a red circle moves left"])

Shape suffixes: M text tokens of all texts, S texts, C width.

Several at once (`t5:ID+clip:MODEL/TAG`): a text has the tokens of the first, then those of the second, and so on. Each
tower has columns of its own, the others are zero in its tokens, so that the transformer's one projection of text is one
projection per tower. Pooled vectors lie end to end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from recaption.errors import UsageError
from train.text.clip import ClipTower
from train.text.interface import TextTower
from train.text.t5 import T5Tower

SPECS = "captioner:tiny, captioner:SPEC, t5:ID (or t5:FOLDER), clip:MODEL/TAG (or clip:FOLDER), or several joined by +"


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
        from recaption.captioners.registry import load_captioner

        captioner = load_captioner(spec, device=str(device))
        self._tower = captioner.text_tower
        self.width, self.pooled_width = self._tower.width, self._tower.pooled_width
        self.weights_hash = captioner.weights_hash

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self._tower.encode(texts)
