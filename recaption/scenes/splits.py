"""Scenes to train on and held-out scenes: which seeds and which shape-colour pairs belong to which.

    training_scene(7)                          # size and length from the seed, none of HELD_OUT_PAIRS
    held_out_scene(3, size=(9, 64, 64))        # 9 frames of 64x64 px; any pair
    sized_scene(7, size=(9, 64, 64))           # one seed, any pair

Training seeds are below `FIRST_HELD_OUT_SEED`, held-out scenes have seeds from there on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recaption.scenes.captions import ATTRIBUTE_VALUES
from recaption.scenes.renderer import Scene, render

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
"""(shape, colour) pairs that no `training_scene` has: they test compositional binding instead of memorisation."""


_SEED_SPREAD = 524_287
"""Prime: consecutive clip numbers visit all training seeds before one repeats."""


_SHORT_SIDES_PX = (72, 72, 96, 144)


_ASPECTS = (16 / 9, 16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
"""Width over height."""


SCENE_FPS = 8


_NUM_FRAMES = (9, 17, 25, 33)
"""Clips last 1 to 4 seconds."""


def training_scene(number: int) -> Scene:
    """Scene `number` of the endless training stream, without held-out pairs."""
    seed = number * _SEED_SPREAD % FIRST_HELD_OUT_SEED
    shapes = ATTRIBUTE_VALUES["main_object"]
    shape = shapes[int(np.random.default_rng([seed, 3]).integers(len(shapes)))]
    colours = tuple(colour for colour in ATTRIBUTE_VALUES["colour"] if (shape, colour) not in HELD_OUT_PAIRS)
    return sized_scene(seed, main_object=shape, colour=colours)


def held_out_scene(
    number: int,
    *,
    first_seed: int = FIRST_HELD_OUT_SEED,
    only_unseen_pairs: bool = False,
    size: tuple[int, int, int] | None = None,
) -> Scene:
    """Held-out scene `number`, of `size` as for `sized_scene`."""
    if first_seed < FIRST_HELD_OUT_SEED:
        raise ValueError(f"{first_seed = } is among the training seeds (below {FIRST_HELD_OUT_SEED})")
    if not only_unseen_pairs:
        return sized_scene(first_seed + number, size=size)
    shape, colour = HELD_OUT_PAIRS[number % len(HELD_OUT_PAIRS)]
    return sized_scene(first_seed + number, size=size, main_object=shape, colour=colour)


def sized_scene(seed: int, *, size: tuple[int, int, int] | None = None, **constraints: Any) -> Scene:
    """A one-shot scene of `size` (frames, height_px, width_px); None: sampled from the seed."""
    num_frames, height_px, width_px = size or _sampled_size(np.random.default_rng([seed, 2]))
    return render(seed, num_frames=num_frames, height_px=height_px, width_px=width_px, fps=SCENE_FPS, **constraints)


def _sampled_size(rng: np.random.Generator) -> tuple[int, int, int]:
    short_side = int(rng.choice(_SHORT_SIDES_PX))
    aspect = float(rng.choice(_ASPECTS))
    long_side = round(short_side * max(aspect, 1 / aspect) / 2) * 2
    height_px, width_px = (short_side, long_side) if aspect >= 1 else (long_side, short_side)
    return int(rng.choice(_NUM_FRAMES)), height_px, width_px
