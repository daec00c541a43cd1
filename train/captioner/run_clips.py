"""The clips of a run folder, with the texts that are known about each, as training data for a captioner.

    trained, held_out = split([RunClip(clip=clip, captions={"descriptive": ("a dog runs",)}), ...])
    RunClips(trained).clip(0, framing, num_frames=8)

Only the frames that the captioner looks at are decoded. From the second epoch on they are drawn anew, one from each of as
many equal spans, so that a small set shows more than 8 pictures of a clip. All clips of a video are held out, or none:
neighbouring shots look alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captions.text import CAPTION_KINDS
from recaption.errors import UsageError
from recaption.records import Clip
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.reader import read_frames
from train.captioner.clips import CaptionedClip

HELD_OUT_SHARE = 0.1


MAX_HELD_OUT_CLIPS = 2000
"""More than that measures nothing finer and is lost to training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunClip:
    clip: Clip
    captions: Mapping[str, tuple[str, ...]]
    """Kind -> texts."""


class RunClips:
    """Implements `caption_clips.CaptionClips`."""

    fields = ""

    def __init__(self, clips: Sequence[RunClip], *, name: str = "run", decode: DecodeLimits | None = None) -> None:
        if not clips:
            raise UsageError("no clip of this run folder has a caption to learn from")
        self.name = name
        self.clips = list(clips)
        self.num_clips: int | None = len(self.clips)
        self.kinds: tuple[str, ...] = tuple(
            kind for kind in CAPTION_KINDS if any(kind in one.captions for one in clips)
        )
        self._decode = decode or DecodeLimits()

    def clip(self, number: int, preprocessor: FramePreprocessor, *, num_frames: int, epoch: int = 0) -> CaptionedClip:
        one = self.clips[number]
        clip = one.clip
        within = np.full(num_frames, 0.5)
        if epoch:
            within = np.random.default_rng([7, epoch, *clip.clip_id.encode()]).random(num_frames)
        indices = ((np.arange(num_frames) + within) * clip.num_frames / num_frames).astype(np.int64)
        wanted, again = np.unique(indices, return_inverse=True)  # a short clip shows frames twice
        frames = read_frames(
            clip.uri,
            clip.start_frame + wanted,
            short_side_px=min(preprocessor.frame_px, clip.width_px, clip.height_px),
            limits=self._decode,
        )
        return CaptionedClip(
            clip_id=clip.clip_id,
            pixels_THWC=preprocessor.resize_frames(frames.pixels_THWC, again),
            captions=one.captions,
        )

    def texts(self, count: int) -> list[str]:
        texts = [text for one in self.clips for several in one.captions.values() for text in several]
        step = max(1, len(texts) // count)
        return texts[::step][:count]

    def description(self) -> dict[str, Any]:
        rows = [[one.clip.clip_id, {kind: list(texts) for kind, texts in one.captions.items()}] for one in self.clips]
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
        return {"name": self.name, "clips": len(self.clips), "captions": digest}


def split(clips: Sequence[RunClip], *, share: float = HELD_OUT_SHARE) -> tuple[list[RunClip], list[RunClip]]:
    """(clips to learn from, clips to measure on), by video: the same videos whatever else is in the folder.

    A folder with one video has nothing to hold out: it is measured on what it learned.
    """
    videos = sorted({one.clip.video_id for one in clips}, key=lambda video: hashlib.sha256(video.encode()).digest())
    if len(videos) < 2:
        return list(clips), list(clips)
    held_out = set(videos[: max(1, round(len(videos) * min(share, MAX_HELD_OUT_CLIPS / len(clips))))])
    return (
        [one for one in clips if one.clip.video_id not in held_out],
        [one for one in clips if one.clip.video_id in held_out],
    )
