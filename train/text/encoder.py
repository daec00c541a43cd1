"""Frozen text encoder with a cache: captions to packed token states for the transformer.

    encoder = load("captioner:tiny")            # or "t5:google/t5-v1_1-xl", "t5:/models/t5+clip:ViT-L-14/openai"
    text = encoder.encode(["a red circle moves left", ""])
    text.text_MC, text.segments.lengths, text.pooled_SC

Shape suffixes: M text tokens of a pack, S captions of a pack, C width of the encoder.

A blank caption has no tokens: the transformer uses its learned null caption instead. Captions repeat every epoch, so
encoded ones are cached (LRU), up to a number of bytes.
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
from train.parallel.transfer import copied
from train.text import stored
from train.text.interface import TextTower
from train.text.towers import ConcatTextEncoder, load_tower, parse

CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class EncodedText:
    """The encoded captions of one pack."""

    text_MC: Tensor
    """float32, the tokens of all captions, concatenated."""
    segments: Segments
    """Each caption's span; length 0 = blank."""
    pooled_SC: Tensor
    """float32, one vector per caption; zeros for blank ones."""

    def to(self, device: torch.device | str) -> EncodedText:
        return EncodedText(copied(self.text_MC, device), self.segments.to(device), copied(self.pooled_SC, device))


class TextEncoder:
    """A text tower with an LRU cache."""

    def __init__(
        self, tower: TextTower, *, spec: str, weights_hash: str, cache_bytes: int = CACHE_BYTES, batch_size: int = 1
    ) -> None:
        """
        Args:
            spec, weights_hash: identify the encoder in checkpoints.
            batch_size: texts per forward pass. 1 is right on a CPU: there is no padding, and a caption's encoding does
                not depend on its batch, to the last bit.
        """
        self.tower, self.spec, self.weights_hash, self.batch_size = tower, spec, weights_hash, batch_size
        self.width, self.pooled_width = tower.width, tower.pooled_width
        self.cache_bytes = cache_bytes
        self._cached: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._cached_bytes = 0

    @property
    def towers(self) -> Sequence[TextTower]:
        """The towers, one by one where several are joined."""
        return self.tower.towers if isinstance(self.tower, ConcatTextEncoder) else [self.tower]

    @property
    def config(self) -> dict[str, Any]:
        """What a checkpoint records to load and verify the same encoder."""
        return {
            "spec": self.spec,
            "weights_hash": self.weights_hash,
            "width": self.width,
            "pooled_width": self.pooled_width,
        }

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """Encode the captions of one pack; on the CPU, without gradient."""
        texts = [text.strip() for text in texts]
        encodings = {"": (torch.zeros(0, self.width), torch.zeros(self.pooled_width))}
        for text in texts:
            if text in self._cached:
                self._cached.move_to_end(text)
                encodings[text] = self._cached[text]
        missing = [text for text in dict.fromkeys(texts) if text not in encodings]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            for text, encoded in zip(batch, self._run_tower(batch), strict=True):
                encodings[text] = encoded
                self._add_to_cache(text, encoded)
        encoded_texts = [encodings[text] for text in texts]
        return EncodedText(
            torch.cat([text_MC for text_MC, _ in encoded_texts]),
            Segments.from_lengths([len(text_MC) for text_MC, _ in encoded_texts]),
            torch.stack([pooled_C for _, pooled_C in encoded_texts]),
        )

    @torch.no_grad()
    def _run_tower(self, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
        text_MC, lengths_S, pooled_SC = self.tower.encode(texts)
        lengths = [int(n) for n in lengths_S]
        states = text_MC.detach().float().cpu().split(lengths)
        return [(state.clone(), pooled) for state, pooled in zip(states, pooled_SC.detach().float().cpu(), strict=True)]

    def _add_to_cache(self, text: str, encoded: tuple[Tensor, Tensor]) -> None:
        self._cached[text] = encoded
        self._cached_bytes += sum(t.nbytes for t in encoded)
        while self._cached_bytes > self.cache_bytes and self._cached:
            _, oldest = self._cached.popitem(last=False)
            self._cached_bytes -= sum(t.nbytes for t in oldest)


def load(
    spec: str, *, device: torch.device | str = "cpu", weights_hash: str | None = None, run: RunFolder | None = None
) -> TextEncoder:
    """Load the frozen text encoder `spec`.

    Args:
        spec: `captioner:SPEC`, the text tower of a captioner; `t5:ID`, a T5 or UMT5 encoder (ID may be a folder);
            `clip:MODEL/TAG`, the text tower of a CLIP; or several of them joined by +.
        weights_hash: hash recorded in a checkpoint; other weights are refused.
        run: run folder whose precomputed encodings (`recaption encode`) are read instead; the encoder itself is loaded
            only for a text that is missing there.

    Raises:
        UsageError: invalid spec, or other weights than `weights_hash`.
        WeightsUnreachableError: neither on disk nor downloadable; raised within seconds.
    """
    towers = [_tower(f"{kind}:{name}", device, run) for kind, name in parse(spec)]
    tower = towers[0] if len(towers) == 1 else ConcatTextEncoder(towers)
    actual_hash = tower.weights_hash
    if weights_hash is not None and actual_hash != weights_hash:
        raise UsageError(
            f"text encoder {spec!r} has weights {actual_hash} here, but the checkpoint was trained with {weights_hash}; "
            "install the version it was trained with"
        )
    batch_size = 1 if torch.device(device).type == "cpu" else 32
    return TextEncoder(tower, spec=spec, weights_hash=actual_hash, batch_size=batch_size)


def _tower(spec: str, device: torch.device | str, run: RunFolder | None) -> TextTower:
    texts = stored.find(run, spec) if run is not None else None
    return stored.PrecomputedTextEncoder(texts, lambda: load_tower(spec, device)) if texts else load_tower(spec, device)
