"""Rendered scenes as training clips for the captioner: endless, deterministic, with scenes kept aside for measuring.

    clip = training_clip(7, framing, num_frames=8)
    clip.pixels_THWC, clip.long_caption, clip.short_caption, clip.truth

Training scenes have seeds below `FIRST_HELD_OUT_SEED` and never show one of `HELD_OUT_PAIRS`; held-out scenes have
seeds from there on, and show any pair, or only those pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recaption.captioners.framing import Framing, choose_frames
from recaption.records import CaptionFields
from recaption.scene_captions import VOCABULARY, Look, long_caption, short_caption
from recaption.scenes import Scene, render

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
"""Shape and colour that training never shows together, though each alone is common: names binding, not memory."""

_SEED_SPREAD = 524_287
"""Prime: consecutive clip numbers walk through all training seeds before one comes again."""
_SHORT_SIDES_PX = (72, 72, 96, 144)
_ASPECTS = (16 / 9, 16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
"""Width over height."""
_FPS = 8
_NUM_FRAMES = (9, 17, 25, 33)
"""Clips last 1 to 4 seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneClip:
    pixels_THWC: np.ndarray
    """uint8, framed for the captioner."""
    long_caption: str
    short_caption: str
    truth: CaptionFields


def training_clip(number: int, framing: Framing, *, num_frames: int) -> SceneClip:
    """Clip `number` of the endless training stream."""
    seed = number * _SEED_SPREAD % FIRST_HELD_OUT_SEED
    shape = VOCABULARY["main_object"][int(np.random.default_rng([seed, 3]).integers(len(VOCABULARY["main_object"])))]
    colours = tuple(colour for colour in VOCABULARY["colour"] if (shape, colour) not in HELD_OUT_PAIRS)
    return _framed(_varied_scene(seed, main_object=shape, colour=colours), framing, num_frames)


def held_out_scene(number: int, *, first_seed: int = FIRST_HELD_OUT_SEED, only_unseen_pairs: bool = False) -> Scene:
    """Scene `number` for measuring, at its own size and length."""
    if first_seed < FIRST_HELD_OUT_SEED:
        raise ValueError(f"{first_seed = } is among the training seeds (below {FIRST_HELD_OUT_SEED})")
    if only_unseen_pairs:
        shape, colour = HELD_OUT_PAIRS[number % len(HELD_OUT_PAIRS)]
        return _varied_scene(first_seed + number, main_object=shape, colour=colour)
    return _varied_scene(first_seed + number)


def some_captions(count: int, *, seed: int = 0) -> list[str]:
    """Long and short captions of random looks, nothing rendered: what the vocabulary is learned from."""
    rng = np.random.default_rng([seed, 4])
    captions = []
    for _ in range(count):
        options = {key: (*values, "") if key in ("text", "size") else values for key, values in VOCABULARY.items()}
        look = Look(**{key: values[int(rng.integers(len(values)))] for key, values in options.items()})
        captions += [long_caption(look, rng), short_caption(look, rng)]
    return captions


def _varied_scene(seed: int, **only: Any) -> Scene:
    """A one-shot scene whose size and length follow from the seed too."""
    rng = np.random.default_rng([seed, 2])
    short_side = int(rng.choice(_SHORT_SIDES_PX))
    aspect = float(rng.choice(_ASPECTS))
    long_side = round(short_side * max(aspect, 1 / aspect) / 2) * 2
    height_px, width_px = (short_side, long_side) if aspect >= 1 else (long_side, short_side)
    return render(
        seed, num_frames=int(rng.choice(_NUM_FRAMES)), height_px=height_px, width_px=width_px, fps=_FPS, **only
    )


def _framed(scene: Scene, framing: Framing, num_frames: int) -> SceneClip:
    chosen = choose_frames(len(scene.frames_THWC), num_frames, repeat=True)
    return SceneClip(
        pixels_THWC=framing.pixels(scene.frames_THWC, chosen),
        long_caption=scene.long_caption,
        short_caption=scene.short_caption,
        truth=scene.fields,
    )
