"""Sample sources of the loader: the protocol, and latents in shards by ranged reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from packing.grid import Shape3
from packing.loader.captions import read_blend
from packing.mixture.segments import Segment
from packing.shards.read import read_latent
from packing.shards.samples import LatentSample
from recaption.captions.mixture import CaptionMixtureSettings
from recaption.errors import UsageError
from recaption.records import from_table
from recaption.run_folder import RunFolder


class SampleSource(Protocol):
    """A set of samples: sizes and captions in memory, latents read one by one."""

    @property
    def clip_ids(self) -> Sequence[str]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def caption(self, index: int, epoch: int, segment: Segment | None = None) -> str:
        """The caption of a sample in an epoch.

        Args:
            segment: None for the whole sample at its first occurrence in the epoch.
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
    """The latents under RUN/latents/<name>; captions from the shards, or from a mixture (captions/mixture.py)."""

    def __init__(
        self, run: RunFolder, name: str, *, blend: CaptionMixtureSettings | None = None, window_captions: bool = False
    ) -> None:
        """
        Args:
            blend: the caption mixture; None: the captions in the shards.
            window_captions: samples are cropped in time, and each crop gets the caption of its own window if there is one.
        """
        index = f"latents/{name}/index.parquet"
        if not run.exists(index):
            raise UsageError(f"{run.uri} has no {index}; run `recaption encode` first")
        self.run = run
        self.samples = from_table(run.read_table(index), LatentSample)
        if not self.samples:
            raise UsageError(f"{index} of {run.uri} lists no samples")
        self.clip_ids = [sample.clip_id for sample in self.samples]
        self.captions = [sample.caption for sample in self.samples]
        self.latent_shapes = [(s.latent_frames, s.latent_height, s.latent_width) for s in self.samples]
        self.buckets: Sequence[str] | None = [sample.bucket for sample in self.samples]
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.clip_id} {sample.sha256} {sample.caption}\n".encode())
        self.blend = read_blend(run, self.samples, blend, window_captions=window_captions) if blend else None
        if self.blend:
            digest.update(self.blend.fingerprint.encode())
        self.fingerprint = digest.hexdigest()[:16]
        self._is_verified = bytearray(len(self.samples))

    def caption(self, index: int, epoch: int, segment: Segment | None = None) -> str:
        if self.blend is None or segment is None:
            return self.blend.text(index, epoch) if self.blend else self.captions[index]
        seconds = _span_seconds(self.samples[index], segment)
        return self.blend.text(index, epoch, number=segment.occurrence, seconds=seconds)

    def read(self, index: int) -> np.ndarray:
        """Verifies the sha256 at the first read in each process, and key, size and shape at every read."""
        latent = read_latent(self.run, self.samples[index], check=not self._is_verified[index])
        self._is_verified[index] = 1
        return latent


def _span_seconds(sample: LatentSample, segment: Segment) -> tuple[float, float]:
    """Start and end since the sample's start: its first latent frame is one video frame, the others equally many each."""
    stride = (sample.num_frames - 1) / max(1, sample.latent_frames - 1)
    end = segment.first_frame + (segment.num_frames or sample.latent_frames)
    first, last = (1 + (frame - 1) * stride if frame else 0.0 for frame in (segment.first_frame, end))
    return first / sample.fps, last / sample.fps
