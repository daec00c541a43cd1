"""Frozen text encoders: captions to packed text for the transformer.

    encoder = load("captioner:tiny")            # or "t5:google/t5-v1_1-xl", "t5:/models/t5+clip:ViT-L-14/openai"
    text = encoder.encode(["a red circle moves left", ""])
    text.text_MC, text.segments.lengths, text.pooled_SC

Shape suffixes: M text tokens of a row, S captions of a row, C width of the encoder.

A blank caption has no token at all: the transformer puts its learned null caption there. Captions repeat every epoch,
so what was encoded once is kept, up to a number of bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recaption.errors import UsageError
from recaption.run_folder import RunFolder
from train.layers.segments import Segments
from train.text import stored as text_cache
from train.text.interface import TextTower
from train.text.towers import JointTower, open_tower, parse

CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class EncodedText:
    """The captions of one row."""

    text_MC: Tensor
    """float32, all tokens of all captions, one caption after the other."""
    segments: Segments
    """Where each caption lies; length 0 = blank."""
    pooled_SC: Tensor
    """float32, one vector per caption; zeros where blank."""

    def to(self, device: torch.device | str) -> EncodedText:
        return EncodedText(self.text_MC.to(device), self.segments.to(device), self.pooled_SC.to(device))


class TextEncoder:
    """A tower with a memory."""

    def __init__(
        self,
        tower: TextTower,
        *,
        spec: str,
        weights_hash: str,
        cache_bytes: int = CACHE_BYTES,
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            spec, weights_hash: by which a checkpoint finds the same encoder again, and knows it.
            batch_size: texts encoded at once. 1 is right on a CPU, where padding gains nothing, and makes a caption's
                numbers independent of its neighbours to the last bit.
        """
        self.tower, self.spec, self.weights_hash, self.batch_size = tower, spec, weights_hash, batch_size
        self.width, self.pooled_width = tower.width, tower.pooled_width
        self.cache_bytes = cache_bytes
        self._cached: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._cached_bytes = 0

    @property
    def config(self) -> dict[str, Any]:
        """What a checkpoint has to know to load the same encoder again, and to see whether it is the same."""
        return {
            "spec": self.spec,
            "weights_hash": self.weights_hash,
            "width": self.width,
            "pooled_width": self.pooled_width,
        }

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """Captions as one packed row, on the CPU; no gradient."""
        texts = [text.strip() for text in texts]
        known = {"": (torch.zeros(0, self.width), torch.zeros(self.pooled_width))}
        for text in texts:
            if text in self._cached:
                self._cached.move_to_end(text)
                known[text] = self._cached[text]
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            for text, encoded in zip(batch, self._run_tower(batch), strict=True):
                known[text] = encoded
                self._keep(text, encoded)
        rows = [known[text] for text in texts]
        return EncodedText(
            torch.cat([text_MC for text_MC, _ in rows]),
            Segments.from_lengths([len(text_MC) for text_MC, _ in rows]),
            torch.stack([pooled_C for _, pooled_C in rows]),
        )

    @torch.no_grad()
    def _run_tower(self, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
        text_MC, lengths_S, pooled_SC = self.tower.encode(texts)
        lengths = [int(n) for n in lengths_S]
        parts = text_MC.detach().float().cpu().split(lengths)
        return [(part.clone(), pooled) for part, pooled in zip(parts, pooled_SC.detach().float().cpu(), strict=True)]

    def _keep(self, text: str, encoded: tuple[Tensor, Tensor]) -> None:
        self._cached[text] = encoded
        self._cached_bytes += sum(t.nbytes for t in encoded)
        while self._cached_bytes > self.cache_bytes and self._cached:
            _, oldest = self._cached.popitem(last=False)
            self._cached_bytes -= sum(t.nbytes for t in oldest)


def load(
    spec: str,
    *,
    device: torch.device | str = "cpu",
    weights_hash: str | None = None,
    run: RunFolder | None = None,
) -> TextEncoder:
    """The frozen encoder that `spec` names.

    Args:
        spec: `captioner:SPEC`, the text tower of a captioner; `t5:ID`, a T5 or UMT5 encoder (ID may be a folder);
            `clip:MODEL/TAG`, the text tower of a CLIP; or several of them joined by +.
        weights_hash: what a checkpoint was trained with; other weights are refused.
        run: where texts that `recaption encode` encoded are read instead of encoded again; an encoder all of whose
            texts are there is never loaded.

    Raises:
        UsageError: not such a spec, or other weights than `weights_hash`.
        WeightsUnreachableError: neither on disk nor to be downloaded; within seconds.
    """
    towers = [_tower(f"{kind}:{name}", device, run) for kind, name in parse(spec)]
    tower = towers[0] if len(towers) == 1 else JointTower(towers)
    found = tower.weights_hash
    if weights_hash is not None and found != weights_hash:
        raise UsageError(
            f"text encoder {spec!r} has weights {found} here, but the checkpoint was trained with {weights_hash}; "
            "install the version it was trained with"
        )
    batch_size = 1 if torch.device(device).type == "cpu" else 32
    return TextEncoder(tower, spec=spec, weights_hash=found, batch_size=batch_size)


def _tower(spec: str, device: torch.device | str, run: RunFolder | None) -> TextTower:
    stored = text_cache.find(run, spec) if run is not None else None
    return text_cache.StoredTower(stored, lambda: open_tower(spec, device)) if stored else open_tower(spec, device)
