"""Videos that are held out for validation: chosen by the hash of their ids, with all of their clips.

    training, held_out = split_source(source, share=0.02)        # held_out is None where the set is too small
    training.clip_ids, held_out.clip_ids                         # no video has clips in both

A video is on the same side in every run folder, on every machine, and whatever videos are added: only its own id decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from packing.grid import Shape3
from packing.loader.sources import SampleSource
from packing.mixture.segments import Segment
from recaption.errors import UsageError


def video_of(clip_id: str) -> str:
    """The video of a clip: its id without the span of frames."""
    return clip_id.rsplit("-", 2)[0]


def held_out_videos(video_ids: Iterable[str], share: float) -> set[str]:
    """About `share` of the videos, those with the lowest hashes.

    None of fewer than 1 / share videos, which are all needed for training; of more, at least the one with the lowest hash.

    Raises:
        UsageError: `share` is not in 0 .. 0.5.
    """
    if not 0 <= share <= 0.5:
        raise UsageError(f"holdout_share = {share} must be a share of the videos from 0 to 0.5")
    position = {video: _position(video) for video in set(video_ids)}
    if share * len(position) < 1 or len(position) < 2:
        return set()
    chosen = {video for video, where in position.items() if where < share}
    return chosen or {min(position, key=lambda video: (position[video], video))}


def _position(video_id: str) -> float:
    """0 to 1, evenly spread over videos."""
    return int.from_bytes(hashlib.sha256(f"held out {video_id}".encode()).digest()[:8], "big") / 2**64


def split_source(source: SampleSource, share: float) -> tuple[SampleSource, SampleSource | None]:
    """(samples to train on, samples held out or None); with nothing held out the source is returned as it is."""
    videos = [video_of(clip_id) for clip_id in source.clip_ids]
    held_out = held_out_videos(videos, share)
    if not held_out:
        return source, None
    indices = {side: [i for i, video in enumerate(videos) if (video in held_out) == side] for side in (False, True)}
    return SourceSubset(source, indices[False]), SourceSubset(source, indices[True])


class SourceSubset:
    """Some samples of a source, as a source."""

    def __init__(self, source: SampleSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)
        self.clip_ids = [source.clip_ids[i] for i in self.indices]
        self.captions = [source.captions[i] for i in self.indices]
        self.latent_shapes: list[Shape3] = [source.latent_shapes[i] for i in self.indices]
        self.buckets = None if source.buckets is None else [source.buckets[i] for i in self.indices]
        digest = hashlib.sha256(f"{source.fingerprint} {self.indices}".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def caption(self, index: int, epoch: int, segment: Segment | None = None) -> str:
        more = () if segment is None else (segment,)
        return self.source.caption(self.indices[index], epoch, *more)

    def read(self, index: int) -> np.ndarray:
        return self.source.read(self.indices[index])
