"""Rendered videos whose every caption field, cut and action is known: the yardstick of every stage.

    scene = render(7, num_frames=33, height_px=96, width_px=96, colour="red", action=("moves left", "moves right"))
    scene.frames_THWC, scene.short_caption, scene.long_caption, scene.fields, scene.cut_frames
    scene.write("scene.mp4")

What a caption says is always decidable from the pixels: fields that would hide each other (green on grass, a plain
circle that rotates, dusk in sepia) are never drawn together. The same seed gives the same frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recaption.errors import UsageError
from recaption.records import CaptionFields
from recaption.scenes.backgrounds import contour_colour, is_dark, is_visible, paint_world
from recaption.scenes.captions import VOCABULARY, Look, long_caption, short_caption
from recaption.scenes.objects import ROUND_SHAPES, camera_path, draw_object, object_path
from recaption.scenes.overlays import Grain, Weather, drawn_text, pixelated, text_at_bottom

Only = str | Sequence[str]
"""One value of `VOCABULARY[key]`, or those to choose from."""


SIMPLE: Mapping[str, Any] = {
    "surroundings": "empty",
    "text": "",
    "style": "flat",
    "texture": "plain",
    "camera": "fixed",
    "weather": "clear",
}
"""`render(seed, **SIMPLE)`: only the object, its colour, its motion and the background vary."""


TRANSITIONS = ("cut", "fade", "dissolve")
"""`fade` goes through black."""


_TEXT_SHARE = 0.35


_MOVING_CAMERA_SHARE = 0.3


_EASY_STYLE_SHARE = 0.3


_MIN_SHOT_FRAMES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """What is true of the frames [start_frame, end_frame) of a scene."""

    start_frame: int
    end_frame: int
    look: Look
    short_caption: str
    long_caption: str

    @property
    def fields(self) -> CaptionFields:
        return self.look.fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """How one shot turns into the next."""

    kind: str
    """One of `TRANSITIONS`."""
    cut_frame: int
    """First frame of the new shot; the middle of a gradual transition."""
    start_frame: int
    """First frame that both shots (or black) share; equals `cut_frame` for a cut."""
    end_frame: int
    """First frame that is the new shot alone; equals `cut_frame` for a cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Frames and their ground truth."""

    frames_THWC: np.ndarray
    """uint8 RGB."""
    fps: Fraction
    shots: tuple[Shot, ...]
    transitions: tuple[Transition, ...]
    seed: int

    @property
    def cut_frames(self) -> tuple[int, ...]:
        """First frame of each shot but the first."""
        return tuple(t.cut_frame for t in self.transitions)

    @property
    def fields(self) -> CaptionFields:
        return self.shots[0].fields

    @property
    def short_caption(self) -> str:
        return self.shots[0].short_caption

    @property
    def long_caption(self) -> str:
        return self.shots[0].long_caption

    def write(self, path: str | Path, *, crf: int = 12) -> None:
        """Write as .mp4 (H.264) or .webm (VP9), by the path's suffix."""
        from recaption.video_io.writer import write_video

        suffix = Path(path).suffix.lower()
        if suffix == ".mp4":
            write_video(str(path), self.frames_THWC, fps=self.fps, codec="libx264", crf=crf, container="mp4")
        elif suffix == ".webm":
            write_video(str(path), self.frames_THWC, fps=self.fps, codec="libvpx-vp9", crf=crf, container="webm")
        else:
            raise UsageError(f"{path}: a scene is written as .mp4 or .webm, not {suffix!r}")

    def truth(self) -> dict[str, object]:
        """Everything but the pixels, JSON-simple."""
        num_frames, height_px, width_px, _ = self.frames_THWC.shape
        return {
            "seed": self.seed,
            "num_frames": num_frames,
            "height_px": height_px,
            "width_px": width_px,
            "fps": float(self.fps),
            "cut_frames": list(self.cut_frames),
            "transitions": [dataclasses.asdict(t) for t in self.transitions],
            "shots": [dataclasses.asdict(s) | {"fields": dataclasses.asdict(s.fields)} for s in self.shots],
        }


def render(
    seed: int,
    *,
    num_frames: int = 33,
    height_px: int = 144,
    width_px: int = 256,
    fps: int | float | Fraction = 8,
    num_shots: int = 1,
    transition: str | None = None,
    **only: Only,
) -> Scene:
    """Draw one scene.

    Args:
        seed: decides everything that the other arguments leave open.
        num_shots: shots of at least 4 frames each, joined by `transition` (None = drawn for each).
        only: keys of `VOCABULARY` with one value, or several to choose from. `text=""` draws none.

    Raises:
        UsageError: a size under 32 px, too few frames for the shots, an unknown key or value, or values that would hide
            each other (`colour="green", background="grass"`).
    """
    if min(height_px, width_px) < 32 or num_frames < 1 or fps <= 0:
        raise UsageError(f"{height_px = }, {width_px = } must be >= 32, {num_frames = } >= 1, {fps = } > 0")
    if num_shots < 1 or (num_shots > 1 and num_frames < num_shots * _MIN_SHOT_FRAMES):
        raise UsageError(f"{num_shots = } need at least {num_shots * _MIN_SHOT_FRAMES} frames, not {num_frames = }")
    if transition is not None and transition not in TRANSITIONS:
        raise UsageError(f"{transition = } is not one of {TRANSITIONS}")
    exact_fps = Fraction(fps).limit_denominator(1001)
    rng = np.random.default_rng([seed, 0])
    choices = _choices(only)
    transitions = _draw_transitions(num_frames, num_shots, transition, float(exact_fps), rng)
    bounds = [0, *(t.cut_frame for t in transitions), num_frames]
    shots: list[Shot] = []
    frames_THWC = np.empty((num_frames, height_px, width_px, 3), np.uint8)
    for index in range(num_shots):
        start = transitions[index - 1].start_frame if index else 0
        end = transitions[index].end_frame if index + 1 < num_shots else num_frames
        shot_rng = np.random.default_rng([seed, 1, index])
        look = _draw_look(choices, end - start, min(height_px, width_px), shot_rng, shots[-1].look if shots else None)
        shots.append(
            Shot(
                start_frame=bounds[index],
                end_frame=bounds[index + 1],
                look=look,
                short_caption=short_caption(look, shot_rng),
                long_caption=long_caption(look, shot_rng),
            )
        )
        draw = _shot_drawer(look, end - start, height_px, width_px, float(exact_fps), shot_rng)
        before = transitions[index - 1] if index else None
        for frame in range(start, end):
            picture = draw(frame - start)
            if before is not None and frame < before.end_frame:
                picture = _mixed(frames_THWC[frame], picture, frame, before)
            frames_THWC[frame] = picture
    return Scene(frames_THWC=frames_THWC, fps=exact_fps, shots=tuple(shots), transitions=tuple(transitions), seed=seed)


def _choices(only: Mapping[str, Only]) -> dict[str, tuple[str, ...]]:
    """Allowed values per key, in the order of `VOCABULARY`."""
    unknown = set(only) - set(VOCABULARY)
    if unknown:
        raise UsageError(f"render() knows no {sorted(unknown)}; it knows {list(VOCABULARY)}")
    choices = {key: values if key != "text" else ("", *values) for key, values in VOCABULARY.items()}
    for key, value in only.items():
        values = (value,) if isinstance(value, str) else tuple(value)
        wrong = [v for v in values if v not in choices[key]]
        if wrong or not values:
            raise UsageError(f"{key} cannot be {wrong}; choose from {list(choices[key])}")
        choices[key] = values
    return choices


def _draw_look(
    choices: Mapping[str, tuple[str, ...]],
    num_frames: int,
    short_side_px: int,
    rng: np.random.Generator,
    before: Look | None,
) -> Look:
    """One look whose fields can all be seen; differs in background and colour from the shot before where it may."""
    conflict: str | None = None
    for attempt in range(2000):
        values = {key: options[int(rng.integers(len(options)))] for key, options in choices.items()}
        _keep_rare_things_rare(values, choices, rng)
        if values["action"] in ("grows", "shrinks") or values["camera"].startswith("zooms"):
            values["size"] = ""
        look = Look(**values)
        conflict = _conflict(look, num_frames, short_side_px)
        if conflict is None and before is not None and attempt < 200:
            same = [key for key in ("background", "colour") if getattr(look, key) == getattr(before, key)]
            conflict = "the same look twice in a row" if same else None
        if conflict is None:
            return look
    raise UsageError(f"no scene can show {dict(choices)}: {conflict}")


def _keep_rare_things_rare(
    values: dict[str, str], choices: Mapping[str, tuple[str, ...]], rng: np.random.Generator
) -> None:
    """Most scenes have no text, a fixed camera and flat colours; drawn evenly, fields would rarely be seen alone."""
    draws = rng.uniform(size=3)
    if "" in choices["text"] and draws[0] > _TEXT_SHARE:
        values["text"] = ""
    if "fixed" in choices["camera"] and draws[1] > _MOVING_CAMERA_SHARE:
        values["camera"] = "fixed"
    if "flat" in choices["style"] and draws[2] < _EASY_STYLE_SHARE:
        values["style"] = "flat"


def _conflict(look: Look, num_frames: int, short_side_px: int) -> str | None:
    """Why this look could not be told from its pixels; None where it can."""
    moving = look.action != "stays still"
    panning, zooming = look.camera.startswith("pans"), look.camera.startswith("zooms")
    tiny = short_side_px < 64
    rules = (
        (moving and num_frames < 2, "motion needs at least 2 frames"),
        (look.camera != "fixed" and num_frames < 2, "camera motion needs at least 2 frames"),
        (look.action in ("loops around", "bounces", "rotates") and num_frames < 6, "this motion needs 6 frames"),
        (
            look.action == "rotates" and look.main_object in ROUND_SHAPES and look.texture == "plain",
            "a plain round object shows no rotation",
        ),
        (panning and look.action not in ("stays still", "rotates", "bounces"), "a pan hides this motion"),
        (zooming and look.action not in ("stays still", "rotates"), "a zoom hides this motion"),
        ((panning or zooming) and look.surroundings == "empty", "camera motion shows only against surroundings"),
        (tiny and look.texture != "plain", "textures need a short side of 64 px"),
        (tiny and look.size == "small", "below 64 px only large objects keep their shape"),
        (look.style == "pixelated" and look.texture != "plain" and look.size != "large", "blocks hide a fine texture"),
        (look.style == "noisy" and look.texture == "dotted" and look.size != "large", "grain hides fine dots"),
        (look.style == "sepia" and look.weather == "dusk", "sepia hides the colours of dusk"),
        (look.background == "night" and look.weather in ("sunny", "dusk"), "at night there is neither sun nor dusk"),
        (
            look.weather == "foggy" and (look.background in ("sky", "ice", "road", "night") or look.style == "sepia"),
            "fog hides this background",
        ),
        (look.background == "ice" and look.weather == "snowy", "snow does not show on ice"),
        (look.style == "pixelated" and look.background == "night" and look.weather == "snowy", "blocks hide flakes"),
        (look.weather == "foggy" and look.surroundings == "clouds", "fog hides clouds"),
        (look.texture == "dotted" and look.main_object in ("ring", "cross", "crescent"), "too thin for dots"),
        (
            look.style == "outline" and look.colour == ("white" if is_dark(look) else "black"),
            "the outline has the colour of the object",
        ),
        (not is_visible(look), f"{look.colour} does not stand out from {look.background}"),
    )
    return next((reason for broken, reason in rules if broken), None)


def _draw_transitions(
    num_frames: int, num_shots: int, kind: str | None, fps: float, rng: np.random.Generator
) -> list[Transition]:
    """Boundaries that leave every shot at least `_MIN_SHOT_FRAMES` frames, and some of its own outside transitions."""
    spare = num_frames - num_shots * _MIN_SHOT_FRAMES
    weights = rng.uniform(0.5, 1.5, size=num_shots)
    ends = np.cumsum(weights / weights.sum() * spare + _MIN_SHOT_FRAMES)
    cuts = [round(end) for end in ends[:-1]]
    transitions = []
    for index, cut in enumerate(cuts):
        chosen = kind or TRANSITIONS[int(rng.integers(len(TRANSITIONS)))]
        before, after = (cuts[index - 1] if index else 0), (cuts[index + 1] if index + 1 < len(cuts) else num_frames)
        seconds = float(rng.uniform(0.5, 1.0))
        half = min(max(round(seconds * fps / 2), 2), (min(cut - before, after - cut) - 1) // 2)
        if chosen == "cut" or half < 1:
            chosen, half = "cut", 0
        transitions.append(Transition(kind=chosen, cut_frame=cut, start_frame=cut - half, end_frame=cut + half))
    return transitions


def _mixed(old: np.ndarray, new: np.ndarray, frame: int, transition: Transition) -> np.ndarray:
    """The picture of a transition's frame: part of each shot (dissolve), or one of them darkened (fade)."""
    share = (frame - transition.start_frame + 0.5) / (transition.end_frame - transition.start_frame)
    if transition.kind == "dissolve":
        return cv2.addWeighted(old, 1.0 - share, new, share, 0.0)
    source, light = (old, 1.0 - 2.0 * share) if share < 0.5 else (new, 2.0 * share - 1.0)
    return cv2.convertScaleAbs(source, alpha=light)


def _shot_drawer(
    look: Look, num_frames: int, height_px: int, width_px: int, fps: float, rng: np.random.Generator
) -> Callable[[int], np.ndarray]:
    """A function from the shot's frame number to its picture; what stays the same is drawn once, here."""
    poses = object_path(look, num_frames, height_px, width_px, fps, rng)
    views = camera_path(look.camera, num_frames, height_px, width_px)
    world = paint_world(look, height_px, width_px, rng)
    margin_px = (world.shape[1] - width_px) // 2
    dark = is_dark(look)
    area = height_px * width_px / min(height_px, width_px) ** 2
    weather = Weather(look.weather, height_px, width_px, dark_world=dark, num_units=area, rng=rng)
    grain = Grain(height_px, width_px, rng) if look.style == "noisy" else None
    contour = contour_colour(look)
    words = drawn_text(look.text, height_px, width_px, text_at_bottom(look)) if look.text else None

    def draw(frame: int) -> np.ndarray:
        view, seconds = views[frame], frame / fps
        if look.camera == "fixed":
            picture = world.copy()
        else:
            picture = _seen(world, view.shift_px - margin_px, view.zoom, height_px, width_px)
        weather.draw_behind(picture, seconds)
        draw_object(picture, look, poses[frame], contour)
        weather.draw_before(picture, seconds)
        if look.style == "pixelated":
            picture = pixelated(picture)
        if words is not None:
            opacity, letters = words
            picture = (picture + (letters - picture) * opacity + 0.5).astype(np.uint8)
        return grain.add(picture) if grain is not None else picture

    return draw


def _seen(world: np.ndarray, shift_px: float, zoom: float, height_px: int, width_px: int) -> np.ndarray:
    """The window of the world in front of the camera, magnified about the frame's middle."""
    centre_x, centre_y = width_px / 2 - 0.5, height_px / 2 - 0.5
    matrix = np.asarray(
        [[zoom, 0.0, centre_x + zoom * (shift_px - centre_x)], [0.0, zoom, centre_y * (1 - zoom)]], np.float64
    )
    return cv2.warpAffine(world, matrix, (width_px, height_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
