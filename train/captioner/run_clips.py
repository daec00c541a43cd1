"""Clips of a run folder with their captions, as a CaptionClips source.

    trained, held_out = split([RunClip(clip=clip, captions={"descriptive": ("a dog runs",)}), ...])
    RunClips(trained).clip(0, framing, num_frames=8)

Only the frames that the captioner uses are decoded. From the second epoch on they are sampled randomly, one from each of
`num_frames` equal segments, as augmentation for small sets. Clips are held out by video, because neighbouring shots look
alike.
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
from recaption.video_io.opened_video import open_video
from train.captioner.clips import CaptionedClip

HELD_OUT_FRACTION = 0.1
MAX_HELD_OUT_CLIPS = 2000
"""More would not make metrics more precise, and would be lost to training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunClip:
    clip: Clip
    captions: Mapping[str, tuple[str, ...]]
    """Kind -> texts."""


class RunClips:
    """Implements `train.captioner.clips.CaptionClips`."""

    fields = ""

    def __init__(self, clips: Sequence[RunClip], *, name: str = "run", decode: DecodeLimits | None = None) -> None:
        if not clips:
            raise UsageError("no clip of this run folder has a caption to train on")
        self.name = name
        self.clips = list(clips)
        self.num_clips: int | None = len(self.clips)
        self.kinds: tuple[str, ...] = tuple(
            kind for kind in CAPTION_KINDS if any(kind in clip.captions for clip in clips)
        )
        self._decode = decode or DecodeLimits()

    def clip(self, number: int, preprocessor: FramePreprocessor, *, num_frames: int, epoch: int = 0) -> CaptionedClip:
        run_clip = self.clips[number]
        clip = run_clip.clip
        offset = np.full(num_frames, 0.5)
        if epoch:
            offset = np.random.default_rng([7, epoch, *clip.clip_id.encode()]).random(num_frames)
        indices = ((np.arange(num_frames) + offset) * clip.num_frames / num_frames).astype(np.int64)
        unique, inverse = np.unique(indices, return_inverse=True)  # a short clip repeats frames
        with open_video(clip.uri, expected=clip.video_id, limits=self._decode) as video:
            frames = video.read_frames(
                clip.start_frame + unique, short_side_px=min(preprocessor.frame_px, clip.width_px, clip.height_px)
            )
        return CaptionedClip(
            clip_id=clip.clip_id,
            pixels_THWC=preprocessor.resize_frames(frames.pixels_THWC, inverse),
            captions=run_clip.captions,
        )

    def texts(self, count: int) -> list[str]:
        texts = [text for run_clip in self.clips for kind in run_clip.captions.values() for text in kind]
        step = max(1, len(texts) // count)
        return texts[::step][:count]

    def description(self) -> dict[str, Any]:
        identity = [
            [run_clip.clip.clip_id, {kind: list(texts) for kind, texts in run_clip.captions.items()}]
            for run_clip in self.clips
        ]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        return {"name": self.name, "clips": len(self.clips), "captions": digest}


def split(clips: Sequence[RunClip], *, fraction: float = HELD_OUT_FRACTION) -> tuple[list[RunClip], list[RunClip]]:
    """(training clips, held-out clips), split by the hash of the video id, so that adding videos moves few others.

    With a single video nothing can be held out: both lists are all clips.
    """
    videos = sorted({clip.clip.video_id for clip in clips}, key=lambda video: hashlib.sha256(video.encode()).digest())
    if len(videos) < 2:
        return list(clips), list(clips)
    held_out = set(videos[: max(1, round(len(videos) * min(fraction, MAX_HELD_OUT_CLIPS / len(clips))))])
    return (
        [clip for clip in clips if clip.clip.video_id not in held_out],
        [clip for clip in clips if clip.clip.video_id in held_out],
    )
