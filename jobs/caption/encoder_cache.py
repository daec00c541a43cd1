"""Cache of a captioner's image tokens: RUN/embeddings/<set>/tokens-part-NNNNN.parquet (`--caption.cache-encoder-tokens`).

Text generation and scoring need only these tokens and the pooled embedding: with the cache, another caption set by the
same weights (other beams, another seed, other kinds, best of n) decodes no video. Per clip and window they take N * D * 2
bytes: 261 kB with CoCa ViT-B/32, 392 kB with ViT-L/14, 8 kB with a captioner of 32 tokens of width 128. They are reused
by every set of the run folder whose captioner has the same weights and samples the same frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.recipe.part_names import part_name
from jobs.recipe.stage_settings import CaptionSettings
from recaption.captioners.clip_views import CaptionInput
from recaption.captioners.interface import Captioner, EncodedClip
from recaption.errors import UsageError
from recaption.records import Clip, from_table, to_table
from recaption.run_folder import RunFolder, recipe_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedView:
    """Encoder output for one clip, or one window of it."""

    clip_id: str
    window: int
    start_seconds: float
    end_seconds: float
    clip_sha256: str
    pooled: bytes
    """(D,) float32, little endian."""
    tokens: bytes
    """(N, D) float16, little endian, row-major."""
    width: int
    """D, values per token."""


class EncoderCache:
    """Cached tokens of one part at a time, for one captioner and its frame sampling."""

    def __init__(self, run: RunFolder, folder: str, settings: CaptionSettings, captioner: Captioner) -> None:
        """
        Args:
            folder: `embeddings/<set>` of the set that is being written.

        Raises:
            UsageError: the cache is on and the captioner has no image tokens.
        """
        self.has_tokens = hasattr(captioner, "encode")
        if settings.cache_encoder_tokens and not self.has_tokens:
            raise UsageError(f"--caption.cache-encoder-tokens: captioner {captioner.name} has no image tokens")
        self.run, self.folder, self.enabled = run, folder, settings.cache_encoder_tokens
        self.encoder_hash = recipe_hash(
            [
                f"{captioner.name}@{captioner.weights_hash}",
                captioner.num_frames,
                captioner.frame_px,
                settings.precision,
                settings.snap_seconds,
                settings.window_seconds,
            ]
        )
        self._cached: dict[str, list[CachedView]] = {}

    def open(self, number: int) -> None:
        """Load the tokens of this part that any caption set of the run folder has cached."""
        self._cached = {}
        for name in self.run.list(f"embeddings/*/tokens-part-{number:05d}.parquet") if self.has_tokens else ():
            if self.run.table_metadata(name).get("encoder_hash") != self.encoder_hash:
                continue
            found: dict[str, list[CachedView]] = {}
            for row in from_table(self.run.read_table(name), CachedView):
                found.setdefault(row.clip_id, []).append(row)
            self._cached |= found

    def views(self, clip: Clip) -> list[CaptionInput]:
        """Views of the clip with cached tokens instead of frames; [] if it is not cached."""
        return [
            CaptionInput(
                clip=clip,
                window=row.window,
                start_seconds=row.start_seconds,
                end_seconds=row.end_seconds,
                frames_THWC=_decode_row(row),
            )
            for row in self._cached.get(clip.clip_id, [])
        ]

    def add(self, views: Sequence[CaptionInput], encoded_views: Sequence[Any]) -> None:
        """Add new views to the cache, if it is on."""
        if not self.enabled:
            return
        new: dict[str, list[CachedView]] = {}
        for view, encoded in zip(views, encoded_views, strict=True):
            if view.clip.clip_id not in self._cached:
                new.setdefault(view.clip.clip_id, []).append(_row(view, encoded))
        self._cached |= new

    def write(self, number: int, clips: Sequence[Clip]) -> None:
        """Write the tokens of these clips, if the cache is on."""
        if self.enabled:
            rows = [row for clip in clips for row in self._cached.get(clip.clip_id, [])]
            name = part_name(self.folder, number).replace("/part-", "/tokens-part-")
            self.run.write_table(name, to_table(rows, CachedView), {"encoder_hash": self.encoder_hash})
        self._cached = {}


def _row(view: CaptionInput, encoded: EncodedClip) -> CachedView:
    return CachedView(
        clip_id=view.clip.clip_id,
        window=view.window,
        start_seconds=view.start_seconds,
        end_seconds=view.end_seconds,
        clip_sha256=encoded.clip_sha256,
        pooled=encoded.pooled_D.astype("<f4").tobytes(),
        tokens=encoded.tokens_ND.astype("<f2").tobytes(),
        width=encoded.tokens_ND.shape[1],
    )


def _decode_row(row: CachedView) -> EncodedClip:
    return EncodedClip(
        clip_sha256=row.clip_sha256,
        pooled_D=np.frombuffer(row.pooled, "<f4").copy(),
        tokens_ND=np.frombuffer(row.tokens, "<f2").reshape(-1, row.width).copy(),
    )
