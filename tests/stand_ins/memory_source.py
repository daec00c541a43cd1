"""A sample source for the loader whose latents are already in memory, for tests and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from packing.mixture.segments import Segment


class MemorySource:
    """`packing.loader.sources.SampleSource` over latents in memory, each (C, t, h, w)."""

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

    def caption(self, index: int, epoch: int, segment: Segment | None = None) -> str:
        return self.captions[index]

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.latents[index])
