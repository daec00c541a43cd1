"""Rendered scenes as a CaptionClips source: endless, deterministic, with held-out scenes.

    clip = SceneClips().clip(7, framing, num_frames=8)
    clip.pixels_THWC, clip.captions["descriptive"], clip.captions["short"], clip.captions["colour"], clip.truth

Training scenes have seeds below `FIRST_HELD_OUT_SEED` and no shape-colour pair of `HELD_OUT_PAIRS`; held-out scenes have
seeds from there on, with any pair or only those.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from recaption.captioners.preprocess import FramePreprocessor, uniform_frame_indices
from recaption.captions.text import CAPTION_KINDS
from recaption.scenes.captions import ATTRIBUTE_VALUES, SceneAttributes, long_caption, short_caption
from recaption.scenes.renderer import Scene, render
from train.captioner.clips import CaptionedClip

FIRST_HELD_OUT_SEED = 1_000_000
HELD_OUT_PAIRS = (
    ("star", "purple"),
    ("heart", "blue"),
    ("ring", "orange"),
    ("cross", "pink"),
    ("triangle", "white"),
    ("diamond", "red"),
    ("square", "yellow"),
    ("circle", "green"),
    ("crescent", "black"),
)
"""(shape, colour) pairs never rendered for training: they test compositional binding instead of memorisation."""
_SEED_SPREAD = 524_287
"""Prime: consecutive clip numbers visit all training seeds before one repeats."""
_SHORT_SIDES_PX = (72, 72, 96, 144)
_ASPECTS = (16 / 9, 16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
"""Width over height."""
_FPS = 8
_NUM_FRAMES = (9, 17, 25, 33)
"""Clips last 1 to 4 seconds."""
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
        if self._held_out:
            return _captioned(held_out_scene(number), preprocessor, num_frames)
        return training_clip(number, preprocessor, num_frames=num_frames)

    def texts(self, count: int) -> list[str]:
        return random_captions(count // 2)

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "held_out": self._held_out}


def training_clip(number: int, preprocessor: FramePreprocessor, *, num_frames: int) -> CaptionedClip:
    """Clip `number` of the endless training stream."""
    seed = number * _SEED_SPREAD % FIRST_HELD_OUT_SEED
    shape = ATTRIBUTE_VALUES["main_object"][
        int(np.random.default_rng([seed, 3]).integers(len(ATTRIBUTE_VALUES["main_object"])))
    ]
    colours = tuple(colour for colour in ATTRIBUTE_VALUES["colour"] if (shape, colour) not in HELD_OUT_PAIRS)
    return _captioned(_varied_scene(seed, main_object=shape, colour=colours), preprocessor, num_frames)


def held_out_scene(number: int, *, first_seed: int = FIRST_HELD_OUT_SEED, only_unseen_pairs: bool = False) -> Scene:
    """Held-out scene `number`, at its native size and length."""
    if first_seed < FIRST_HELD_OUT_SEED:
        raise ValueError(f"{first_seed = } is among the training seeds (below {FIRST_HELD_OUT_SEED})")
    if only_unseen_pairs:
        shape, colour = HELD_OUT_PAIRS[number % len(HELD_OUT_PAIRS)]
        return _varied_scene(first_seed + number, main_object=shape, colour=colour)
    return _varied_scene(first_seed + number)


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


def _varied_scene(seed: int, **constraints: Any) -> Scene:
    """A one-shot scene with size and length sampled from the seed."""
    rng = np.random.default_rng([seed, 2])
    short_side = int(rng.choice(_SHORT_SIDES_PX))
    aspect = float(rng.choice(_ASPECTS))
    long_side = round(short_side * max(aspect, 1 / aspect) / 2) * 2
    height_px, width_px = (short_side, long_side) if aspect >= 1 else (long_side, short_side)
    return render(
        seed, num_frames=int(rng.choice(_NUM_FRAMES)), height_px=height_px, width_px=width_px, fps=_FPS, **constraints
    )


def scene_captions(scene: Scene) -> dict[str, tuple[str, ...]]:
    """Captions per kind: descriptive, short, and one kind per field."""
    fields = {name: (value or ABSENT_FIELD,) for name, value in dataclasses.asdict(scene.fields).items()}
    return {"descriptive": (scene.long_caption,), "short": (scene.short_caption,), **fields}


def _captioned(scene: Scene, preprocessor: FramePreprocessor, num_frames: int) -> CaptionedClip:
    chosen = uniform_frame_indices(len(scene.frames_THWC), num_frames, repeat=True)
    return CaptionedClip(
        clip_id=f"scene-{scene.seed}",
        pixels_THWC=preprocessor.resize_frames(scene.frames_THWC, chosen),
        captions=scene_captions(scene),
        truth=scene.fields,
    )
