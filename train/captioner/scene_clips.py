"""Rendered scenes as a CaptionClips source: endless, deterministic, with held-out scenes.

    clip = SceneClips().clip(7, framing, num_frames=8)
    clip.pixels_THWC, clip.captions["descriptive"], clip.captions["short"], clip.captions["colour"], clip.truth

`recaption.scenes.splits` says which scenes are held out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from recaption.captioners.preprocess import FramePreprocessor, uniform_frame_indices
from recaption.captions.text import CAPTION_KINDS
from recaption.scenes.captions import ATTRIBUTE_VALUES, SceneAttributes, long_caption, short_caption
from recaption.scenes.renderer import Scene
from recaption.scenes.splits import held_out_scene, training_scene
from train.captioner.clips import CaptionedClip

ABSENT_FIELD = "none"
"""Caption of a field that a scene does not have."""


class SceneClips:
    """The endless training stream, or the held-out scenes. Implements `train.captioner.clips.CaptionClips`."""

    name = "scenes"
    fields = "scenes"
    kinds: tuple[str, ...] = CAPTION_KINDS
    num_clips: int | None = None

    def __init__(self, *, held_out: bool = False) -> None:
        self._held_out = held_out

    def clip(self, number: int, preprocessor: FramePreprocessor, *, num_frames: int, epoch: int = 0) -> CaptionedClip:
        scene = held_out_scene(number) if self._held_out else training_scene(number)
        chosen = uniform_frame_indices(len(scene.frames_THWC), num_frames, repeat=True)
        return captioned_clip(scene, preprocessor.resize_frames(scene.frames_THWC, chosen))

    def texts(self, count: int) -> list[str]:
        return random_captions(count // 2)

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "held_out": self._held_out}


def random_captions(count: int, *, seed: int = 0) -> list[str]:
    """Long and short captions of random looks, without rendering; the vocabulary is trained on them."""
    rng = np.random.default_rng([seed, 4])
    captions = []
    for _ in range(count):
        options = {
            key: (*values, "") if key in ("text", "size") else values for key, values in ATTRIBUTE_VALUES.items()
        }
        look = SceneAttributes(**{key: values[int(rng.integers(len(values)))] for key, values in options.items()})
        captions += [long_caption(look, rng), short_caption(look, rng)]
    return captions


def captioned_clip(scene: Scene, pixels_THWC: np.ndarray) -> CaptionedClip:
    """A scene with its captions: descriptive, short, and one kind per field."""
    fields = {name: (value or ABSENT_FIELD,) for name, value in dataclasses.asdict(scene.fields).items()}
    return CaptionedClip(
        clip_id=f"scene-{scene.seed}",
        pixels_THWC=pixels_THWC,
        captions={"descriptive": (scene.long_caption,), "short": (scene.short_caption,), **fields},
        truth=scene.fields,
    )
