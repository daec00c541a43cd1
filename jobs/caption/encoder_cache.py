"""What a captioner saw of a clip, kept in RUN/embeddings/<set>/tokens-part-NNNNN.parquet with `--caption.keep-embeddings`.

The pooled image tokens are all that decoding and scoring read: with them, another caption set by the same weights (other
beams, another seed, other kinds, the best of several samples) reads no video. Per clip and window they are N * D * 2
bytes: 261 kB with CoCa ViT-B/32, 392 kB with ViT-L/14, 8 kB with a captioner of 32 tokens 128 wide. They are used by
every set of the run folder whose captioner has the same weights and looks at the same frames, and by no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.recipe.run_inputs import part_name
from jobs.recipe.settings import CaptionSettings
from recaption.captioners.clip_views import CaptionInput
from recaption.captioners.interface import Captioner, EncodedClip
from recaption.errors import UsageError
from recaption.records import Clip, from_table, to_table
from recaption.run_folder import RunFolder, recipe_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensRow:
    """One view of one clip."""

    clip_id: str
    window: int
    start_seconds: float
    end_seconds: float
    clip_sha256: str
    pooled: bytes
    """float32, little endian."""
    tokens: bytes
    """float16, little endian, row by row."""
    width: int
    """Values per token."""


class FrameTokens:
    """The store of one part at a time, for one captioner and its way of looking."""

    def __init__(self, run: RunFolder, folder: str, settings: CaptionSettings, captioner: Captioner) -> None:
        """
        Args:
            folder: `embeddings/<set>` of the set that is being made.

        Raises:
            UsageError: tokens are to be kept of a captioner that has none.
        """
        self.has_tokens = hasattr(captioner, "encode")
        if settings.keep_embeddings and not self.has_tokens:
            raise UsageError(f"--caption.keep-embeddings: captioner {captioner.name} has no tokens that could be kept")
        self.run, self.folder, self.keep = run, folder, settings.keep_embeddings
        self.seen_by = recipe_hash(
            [
                f"{captioner.name}@{captioner.weights_hash}",
                captioner.num_frames,
                captioner.frame_px,
                settings.precision,
                settings.snap_seconds,
                settings.window_seconds,
            ]
        )
        self._known: dict[str, list[TokensRow]] = {}

    def open(self, number: int) -> None:
        """Read what any set of the run folder has kept of the clips of this part."""
        self._known = {}
        for name in self.run.list(f"embeddings/*/tokens-part-{number:05d}.parquet") if self.has_tokens else ():
            if self.run.table_metadata(name).get("seen_by") != self.seen_by:
                continue
            found: dict[str, list[TokensRow]] = {}
            for row in from_table(self.run.read_table(name), TokensRow):
                found.setdefault(row.clip_id, []).append(row)
            self._known |= found

    def views(self, clip: Clip) -> list[CaptionInput]:
        """The clip as it was seen, tokens in the place of frames; [] where it was not."""
        return [
            CaptionInput(
                clip=clip,
                window=row.window,
                start_seconds=row.start_seconds,
                end_seconds=row.end_seconds,
                frames_THWC=_encoded(row),
            )
            for row in self._known.get(clip.clip_id, [])
        ]

    def add(self, views: Sequence[CaptionInput], seen: Sequence[Any]) -> None:
        """Remember views that were not known, where tokens are to be kept."""
        if not self.keep:
            return
        new: dict[str, list[TokensRow]] = {}
        for view, encoded in zip(views, seen, strict=True):
            if view.clip.clip_id not in self._known:
                new.setdefault(view.clip.clip_id, []).append(_row(view, encoded))
        self._known |= new

    def write(self, number: int, clips: Sequence[Clip]) -> None:
        """Keep the tokens of these clips, where that is asked for."""
        if self.keep:
            rows = [row for clip in clips for row in self._known.get(clip.clip_id, [])]
            name = part_name(self.folder, number).replace("/part-", "/tokens-part-")
            self.run.write_table(name, to_table(rows, TokensRow), {"seen_by": self.seen_by})
        self._known = {}


def _row(view: CaptionInput, encoded: EncodedClip) -> TokensRow:
    return TokensRow(
        clip_id=view.clip.clip_id,
        window=view.window,
        start_seconds=view.start_seconds,
        end_seconds=view.end_seconds,
        clip_sha256=encoded.clip_sha256,
        pooled=encoded.pooled_D.astype("<f4").tobytes(),
        tokens=encoded.tokens_ND.astype("<f2").tobytes(),
        width=encoded.tokens_ND.shape[1],
    )


def _encoded(row: TokensRow) -> EncodedClip:
    return EncodedClip(
        clip_sha256=row.clip_sha256,
        pooled_D=np.frombuffer(row.pooled, "<f4").copy(),
        tokens_ND=np.frombuffer(row.tokens, "<f2").reshape(-1, row.width).copy(),
    )
