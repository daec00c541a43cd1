"""Frozen text encoders: captions to packed text for the transformer.

    encoder = load("captioner:tiny")            # or "captioner:PATH", "t5:google/t5-v1_1-xl", "t5:/models/t5"
    text = encoder.encode(["a red circle moves left", ""])
    text.text_MC, text.segments.lengths, text.pooled_SC

Shape suffixes: M text tokens of a row, S captions of a row, C width of the encoder.

A blank caption has no token at all: the transformer puts its learned null caption there. Captions repeat every epoch,
so what was encoded once is kept, up to a number of bytes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recaption import hub
from recaption.errors import UsageError
from train.attention import Segments

CACHE_BYTES = 256 << 20
MAX_TEXT_TOKENS = 256
"""Longer captions are cut (T5 only; a captioner's tower has its own limit)."""


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


class TextTower(Protocol):
    """What `captioners` and `T5Tower` give: token states and a pooled vector for each text."""

    width: int
    pooled_width: int

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(text_MC concatenated, lengths_S, pooled_SC)."""
        ...


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


def load(spec: str, *, device: torch.device | str = "cpu", weights_hash: str | None = None) -> TextEncoder:
    """The frozen encoder that `spec` names.

    Args:
        spec: `captioner:SPEC`, the text tower of a captioner, or `t5:ID`, a T5 or UMT5 encoder (ID may be a folder).
        weights_hash: what a checkpoint was trained with; other weights are refused.

    Raises:
        UsageError: not such a spec, or other weights than `weights_hash`.
        WeightsUnreachableError: neither on disk nor to be downloaded; within seconds.
    """
    kind, _, name = spec.partition(":")
    tower: TextTower
    if kind == "captioner" and name:
        from recaption.captioners import load_captioner

        captioner = load_captioner(name, device=str(device))
        tower, found = captioner.text_tower, captioner.weights_hash
    elif kind == "t5" and name:
        tower = T5Tower(name, device)
        found = tower.weights_hash
    else:
        raise UsageError(f"unknown text encoder {spec!r}: use captioner:tiny, captioner:SPEC or t5:ID (or t5:FOLDER)")
    if weights_hash is not None and found != weights_hash:
        raise UsageError(
            f"text encoder {spec!r} has weights {found} here, but the checkpoint was trained with {weights_hash}; "
            "install the version it was trained with"
        )
    batch_size = 1 if torch.device(device).type == "cpu" else 32
    return TextEncoder(tower, spec=spec, weights_hash=found, batch_size=batch_size)


class T5Tower:
    """The encoder half of a T5, mT5 or UMT5."""

    def __init__(self, model_id: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoConfig, AutoTokenizer

        what = f"text encoder t5:{model_id}"
        give = "give a folder with config.json, the tokenizer and model.safetensors as t5:FOLDER"
        local_only = hub.is_on_disk(model_id, what=what, give=give)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        try:
            config = AutoConfig.from_pretrained(model_id, local_files_only=local_only)
        except (OSError, ValueError) as error:
            raise hub.unreachable(what, error, give) from error
        encoder_class = _t5_class(config.model_type, model_id)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model_id, local_files_only=local_only)
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


def _t5_class(model_type: str, model_id: str) -> Any:
    import transformers

    classes = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    if model_type not in classes:
        raise UsageError(f"{model_id} is a {model_type!r} model; t5: takes {', '.join(classes)}")
    return getattr(transformers, classes[model_type])


def _hash_of_weights(model: torch.nn.Module) -> str:
    """First 12 hex digits over names, shapes and a part of the numbers: enough to tell two sets of weights apart
    without reading gigabytes twice."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        sample = parameter.flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample)
    return digest.hexdigest()[:12]
