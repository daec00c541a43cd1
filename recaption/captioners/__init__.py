"""Captioners: clips in, captions out. One interface, several models.

from recaption.captioners import load_captioner

captioner = load_captioner("tiny")
captions = captioner.caption([clip_THWC])          # uint8 (T, H, W, 3), any size
captioner.score([clip_THWC], ["a red circle moves left"])
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from recaption.errors import UsageError, WeightsUnreachableError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from recaption.records import Caption

SPECS = "tiny | open_clip:MODEL/TAG | open_clip:MODEL//path/to/weights | open_clip:MODEL/random | path of a checkpoint"
"""What `load_captioner` accepts, for messages."""

TINY_FOLDER = Path(__file__).parent / "tiny"


class TextTower(Protocol):
    """The text side of a captioner, by itself."""

    width: int
    pooled_width: int
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """text_MD float32 (tokens of all texts one after another), lengths_S int64, pooled_SD float32."""
        ...


@dataclass(frozen=True)
class Described:
    """Captions of B clips, and where clips and captions lie in the captioner's contrastive space."""

    captions: list[Caption]
    clip_BD: np.ndarray
    """float32, unit length."""
    text_BD: np.ndarray
    """float32, unit length: of the captions. `clip_BD @ text_BD.T` is what `score` returns for them."""


class Captioner(Protocol):
    """A model that describes clips."""

    name: str
    weights_hash: str
    """First 12 hex digits of the weights' sha256."""
    num_frames: int
    """Frames it looks at; clips may be given with more (sampled evenly) or fewer."""
    frame_px: int
    """Side of the square it looks at; larger frames are only more work to read."""
    max_tokens: int
    kinds: tuple[str, ...]
    """Of `captions.KINDS`, those that it can be asked for."""

    @property
    def text_tower(self) -> TextTower: ...

    def caption(
        self,
        clips: Sequence[np.ndarray],
        *,
        max_tokens: int | None = None,
        num_beams: int = 1,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> list[Caption]:
        """One caption per clip; `reason` is set on those that fail a gate. With a temperature, words are drawn."""
        ...

    def describe(
        self,
        clips: Sequence[np.ndarray],
        *,
        kind: str = "descriptive",
        max_tokens: int | None = None,
        num_beams: int = 1,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> Described:
        """`caption` with the embeddings of clips and captions; each clip is encoded once for all of it.

        Raises:
            UsageError: `kind` is not one of `kinds`.
        """
        ...

    def score(self, clips: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Contrastive similarity (num_clips, num_texts)."""
        ...


def load_captioner(spec: str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Captioner:
    """Open a captioner.

    Args:
        spec: one of `SPECS`. With two slashes the part after the first is an absolute path.
        dtype: of the weights, float32 where None.

    Raises:
        UsageError: no such captioner.
        WeightsUnreachableError: its weights are neither here nor downloadable; the message names the file.
    """
    kind, _, rest = spec.partition(":")
    if spec == "tiny":
        from recaption.captioners.checkpoint import open_folder

        if not (TINY_FOLDER / "model.safetensors").is_file():
            raise WeightsUnreachableError(
                f"{TINY_FOLDER}/model.safetensors is missing from this installation; install the package again, "
                "or give the path of a checkpoint from `recaption train captioner`"
            )
        return open_folder(TINY_FOLDER, name="tiny", device=device, dtype=dtype)
    if kind == "open_clip" and rest:
        from recaption.captioners.checkpoint import open_open_clip

        model, slash, pretrained = rest.partition("/")
        if not (model and slash and pretrained):
            raise UsageError(f"captioner {spec!r} names no weights; write open_clip:MODEL/TAG (available: {SPECS})")
        return open_open_clip(model, pretrained, device=device, dtype=dtype)
    if os.path.isdir(spec):
        from recaption.captioners.checkpoint import open_folder

        return open_folder(spec, name="videococa", device=device, dtype=dtype)
    raise UsageError(f"there is no captioner {spec!r}; available: {SPECS}")
