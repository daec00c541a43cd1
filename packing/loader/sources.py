"""Sources of samples for the loader: latents in shards (by ranged reads), or in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from packing.grid import Shape3
from packing.loader.captions import read_blend
from packing.mixture.segments import Excerpt
from packing.shards.read import read_latent
from packing.shards.samples import LatentSample
from recaption.captions.mixture import CaptionMixtureSettings
from recaption.errors import UsageError
from recaption.records import from_table
from recaption.run_folder import RunFolder


class Source(Protocol):
    """Where samples come from: their sizes and captions at once, their latents one by one."""

    @property
    def clip_ids(self) -> Sequence[str]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def caption(self, index: int, epoch: int, excerpt: Excerpt | None = None) -> str:
        """The text that a sample shows in an epoch.

        Args:
            excerpt: what is shown of it, where that is not the whole sample, or not for the first time in the epoch.
        """
        ...

    @property
    def latent_shapes(self) -> Sequence[Shape3]:
        """(frames, rows, columns) of each latent."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do."""
        ...

    @property
    def buckets(self) -> Sequence[str] | None:
        """Name of each sample's bucket, where there are buckets."""
        ...

    def read(self, index: int) -> np.ndarray:
        """latent_CTHW, writable. Raises VideoError where this sample is damaged. Called from several threads."""
        ...


class LatentShards:
    """The latents under RUN/latents/<name>, by ranged reads; texts from the shards, or blended (captions/mixture.py)."""

    def __init__(
        self, run: RunFolder, name: str, *, blend: CaptionMixtureSettings | None = None, window_texts: bool = False
    ) -> None:
        """
        Args:
            window_texts: samples are shown in parts, each with the caption of its own window where there is one.
        """
        index = f"latents/{name}/index.parquet"
        if not run.exists(index):
            raise UsageError(f"{run.uri} has no {index}; run `recaption encode` first")
        self.run = run
        self.rows = from_table(run.read_table(index), LatentSample)
        if not self.rows:
            raise UsageError(f"{index} of {run.uri} lists no samples")
        self.clip_ids = [row.clip_id for row in self.rows]
        self.captions = [row.caption for row in self.rows]
        self.latent_shapes = [(row.latent_frames, row.latent_height, row.latent_width) for row in self.rows]
        self.buckets: Sequence[str] | None = [row.bucket for row in self.rows]
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(f"{row.clip_id} {row.sha256} {row.caption}\n".encode())
        self.blend = read_blend(run, self.rows, blend, window_texts=window_texts) if blend else None
        if self.blend:
            digest.update(self.blend.fingerprint.encode())
        self.fingerprint = digest.hexdigest()[:16]
        self._checked = bytearray(len(self.rows))

    def caption(self, index: int, epoch: int, excerpt: Excerpt | None = None) -> str:
        if self.blend is None or excerpt is None:
            return self.blend.text(index, epoch) if self.blend else self.captions[index]
        return self.blend.text(index, epoch, number=excerpt.number, seconds=_seconds(self.rows[index], excerpt))

    def read(self, index: int) -> np.ndarray:
        """The first time in each process the sha256 is compared; every time place, size and shape are."""
        latent = read_latent(self.run, self.rows[index], check=not self._checked[index])
        self._checked[index] = 1
        return latent


def _seconds(row: LatentSample, excerpt: Excerpt) -> tuple[float, float]:
    """Since the start of the sample; its first latent frame is one frame of video, the others are equally many each."""
    stride = (row.num_frames - 1) / max(1, row.latent_frames - 1)
    end = excerpt.first_frame + (excerpt.num_frames or row.latent_frames)
    first, last = (1 + (frame - 1) * stride if frame else 0.0 for frame in (excerpt.first_frame, end))
    return first / row.fps, last / row.fps


class MemorySource:
    """Latents that are already here, each (C, t, h, w)."""

    def __init__(
        self,
        latents: Sequence[np.ndarray],
        clip_ids: Sequence[str],
        captions: Sequence[str],
        *,
        buckets: Sequence[str] | None = None,
    ) -> None:
        self.latents = latents
        self.buckets = buckets
        self.clip_ids = clip_ids
        self.captions = captions
        self.latent_shapes = [(x.shape[1], x.shape[2], x.shape[3]) for x in latents]
        digest = hashlib.sha256(repr((list(clip_ids), list(captions))).encode())
        for latent in latents:
            digest.update(np.ascontiguousarray(latent).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def caption(self, index: int, epoch: int, excerpt: Excerpt | None = None) -> str:
        return self.captions[index]

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.latents[index])
