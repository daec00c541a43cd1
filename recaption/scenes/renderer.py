"""Renderer of synthetic videos whose captions, cuts and actions are known: ground truth for every stage.

    scene = render(7, num_frames=33, height_px=96, width_px=96, colour="red", action=("moves left", "moves right"))
    scene.frames_THWC, scene.short_caption, scene.long_caption, scene.fields, scene.cut_frames
    scene.write("scene.mp4")

A caption can always be verified from the pixels: attributes that would hide each other (green on grass, a plain circle that
rotates, dusk in sepia) are never combined. The same seed gives the same frames.
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
from recaption.scenes.backgrounds import contour_colour, is_dark, is_visible, paint_background
from recaption.scenes.captions import ATTRIBUTE_VALUES, SceneAttributes, long_caption, short_caption
from recaption.scenes.objects import ROUND_SHAPES, camera_trajectory, draw_object, object_trajectory
from recaption.scenes.overlays import Grain, Weather, pixelate, render_text, text_at_bottom

AttributeChoice = str | Sequence[str]
"""One value of an attribute, or several to choose from."""
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
_MAX_TEXT_PROBABILITY = 0.35
"""Upper bound of the probability that a scene has text."""
_MAX_CAMERA_MOTION_PROBABILITY = 0.3
"""Upper bound of the probability that the camera moves."""
_FORCED_FLAT_PROBABILITY = 0.3
"""Probability that the style is set to `flat` whatever was sampled."""
_MIN_SHOT_FRAMES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """Ground truth of the frames [start_frame, end_frame) of a scene."""

    start_frame: int
    end_frame: int
    attributes: SceneAttributes
    short_caption: str
    long_caption: str

    @property
    def fields(self) -> CaptionFields:
        return self.attributes.fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """Transition between two neighbouring shots."""

    kind: str
    """One of `TRANSITIONS`."""
    cut_frame: int
    """First frame of the new shot; the middle of a gradual transition."""
    start_frame: int
    """First frame in which both shots (or black) are visible; equals `cut_frame` for a cut."""
    end_frame: int
    """First frame that shows only the new shot; equals `cut_frame` for a cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A rendered video and its ground truth."""

    frames_THWC: np.ndarray
    """uint8 RGB."""
    fps: Fraction
    shots: tuple[Shot, ...]
    transitions: tuple[Transition, ...]
    seed: int

    @property
    def cut_frames(self) -> tuple[int, ...]:
        """First frame of every shot after the first."""
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
            raise UsageError(f"{path}: scenes can be written as .mp4 or .webm, not {suffix!r}")

    def truth(self) -> dict[str, object]:
        """The ground truth without pixels, as a JSON-serialisable dictionary."""
        num_frames, height_px, width_px, _ = self.frames_THWC.shape
        return {
            "seed": self.seed,
            "num_frames": num_frames,
            "height_px": height_px,
            "width_px": width_px,
            "fps": float(self.fps),
            "cut_frames": list(self.cut_frames),
            "transitions": [dataclasses.asdict(t) for t in self.transitions],
            "shots": [_shot_truth(shot) for shot in self.shots],
        }


def _shot_truth(shot: Shot) -> dict[str, object]:
    """Columns of a shot in truth.jsonl; its attributes are under the key `look`."""
    names = {"attributes": "look"}
    columns = {names.get(name, name): value for name, value in dataclasses.asdict(shot).items()}
    return columns | {"fields": dataclasses.asdict(shot.fields)}


def render(
    seed: int,
    *,
    num_frames: int = 33,
    height_px: int = 144,
    width_px: int = 256,
    fps: int | float | Fraction = 8,
    num_shots: int = 1,
    transition: str | None = None,
    **constraints: AttributeChoice,
) -> Scene:
    """Render one scene.

    Args:
        seed: determines everything that the other arguments do not.
        num_shots: shots of at least 4 frames each, joined by `transition` (None = chosen at random for each).
        constraints: attribute = one value, or several to choose from. `text=""` renders no text.

    Raises:
        UsageError: a size under 32 px, too few frames for the shots, an unknown attribute or value, or values that hide
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
    choices = _allowed_values(constraints)
    transitions = _sample_transitions(num_frames, num_shots, transition, float(exact_fps), rng)
    bounds = [0, *(t.cut_frame for t in transitions), num_frames]
    shots: list[Shot] = []
    frames_THWC = np.empty((num_frames, height_px, width_px, 3), np.uint8)
    for index in range(num_shots):
        start = transitions[index - 1].start_frame if index else 0
        end = transitions[index].end_frame if index + 1 < num_shots else num_frames
        shot_rng = np.random.default_rng([seed, 1, index])
        previous = shots[-1].attributes if shots else None
        attributes = _sample_attributes(choices, end - start, min(height_px, width_px), shot_rng, previous)
        shots.append(
            Shot(
                start_frame=bounds[index],
                end_frame=bounds[index + 1],
                attributes=attributes,
                short_caption=short_caption(attributes, shot_rng),
                long_caption=long_caption(attributes, shot_rng),
            )
        )
        render_frame = _frame_renderer(attributes, end - start, height_px, width_px, float(exact_fps), shot_rng)
        transition_in = transitions[index - 1] if index else None
        for frame in range(start, end):
            picture = render_frame(frame - start)
            if transition_in is not None and frame < transition_in.end_frame:
                picture = _blend_transition(frames_THWC[frame], picture, frame, transition_in)
            frames_THWC[frame] = picture
    return Scene(frames_THWC=frames_THWC, fps=exact_fps, shots=tuple(shots), transitions=tuple(transitions), seed=seed)


def _allowed_values(constraints: Mapping[str, AttributeChoice]) -> dict[str, tuple[str, ...]]:
    """Attribute -> its allowed values, in the order of `ATTRIBUTE_VALUES`."""
    unknown = set(constraints) - set(ATTRIBUTE_VALUES)
    if unknown:
        raise UsageError(f"unknown attributes {sorted(unknown)}; available: {list(ATTRIBUTE_VALUES)}")
    choices = {key: values if key != "text" else ("", *values) for key, values in ATTRIBUTE_VALUES.items()}
    for key, value in constraints.items():
        values = (value,) if isinstance(value, str) else tuple(value)
        wrong = [v for v in values if v not in choices[key]]
        if wrong or not values:
            raise UsageError(f"{key} cannot be {wrong}; choose from {list(choices[key])}")
        choices[key] = values
    return choices


def _sample_attributes(
    choices: Mapping[str, tuple[str, ...]],
    num_frames: int,
    short_side_px: int,
    rng: np.random.Generator,
    previous: SceneAttributes | None,
) -> SceneAttributes:
    """Sample attributes that are all visible; background and colour differ from the previous shot where possible."""
    conflict: str | None = None
    for attempt in range(2000):
        values = {key: options[int(rng.integers(len(options)))] for key, options in choices.items()}
        _downweight_complex_values(values, choices, rng)
        if values["action"] in ("grows", "shrinks") or values["camera"].startswith("zooms"):
            values["size"] = ""
        attributes = SceneAttributes(**values)
        conflict = _conflict(attributes, num_frames, short_side_px)
        if conflict is None and previous is not None and attempt < 200:
            same = [key for key in ("background", "colour") if getattr(attributes, key) == getattr(previous, key)]
            conflict = "the same background or colour twice in a row" if same else None
        if conflict is None:
            return attributes
    raise UsageError(f"no scene can show {dict(choices)}: {conflict}")


def _downweight_complex_values(
    values: dict[str, str], choices: Mapping[str, tuple[str, ...]], rng: np.random.Generator
) -> None:
    """Make text and camera motion rarer and the flat style more frequent than uniform sampling would."""
    uniform = rng.uniform(size=3)
    if "" in choices["text"] and uniform[0] > _MAX_TEXT_PROBABILITY:
        values["text"] = ""
    if "fixed" in choices["camera"] and uniform[1] > _MAX_CAMERA_MOTION_PROBABILITY:
        values["camera"] = "fixed"
    if "flat" in choices["style"] and uniform[2] < _FORCED_FLAT_PROBABILITY:
        values["style"] = "flat"


def _conflict(scene: SceneAttributes, num_frames: int, short_side_px: int) -> str | None:
    """Reason why these attributes could not be recognised in the pixels; None if they can."""
    moving = scene.action != "stays still"
    panning, zooming = scene.camera.startswith("pans"), scene.camera.startswith("zooms")
    is_tiny = short_side_px < 64
    rules = (
        (moving and num_frames < 2, "motion needs at least 2 frames"),
        (scene.camera != "fixed" and num_frames < 2, "camera motion needs at least 2 frames"),
        (scene.action in ("loops around", "bounces", "rotates") and num_frames < 6, "this motion needs 6 frames"),
        (
            scene.action == "rotates" and scene.main_object in ROUND_SHAPES and scene.texture == "plain",
            "a plain round object shows no rotation",
        ),
        (panning and scene.action not in ("stays still", "rotates", "bounces"), "a pan hides this motion"),
        (zooming and scene.action not in ("stays still", "rotates"), "a zoom hides this motion"),
        ((panning or zooming) and scene.surroundings == "empty", "camera motion shows only against surroundings"),
        (is_tiny and scene.texture != "plain", "textures need a short side of 64 px"),
        (is_tiny and scene.size == "small", "below 64 px only large objects keep their shape"),
        (
            scene.style == "pixelated" and scene.texture != "plain" and scene.size != "large",
            "blocks hide a fine texture",
        ),
        (scene.style == "noisy" and scene.texture == "dotted" and scene.size != "large", "grain hides fine dots"),
        (scene.style == "sepia" and scene.weather == "dusk", "sepia hides the colours of dusk"),
        (scene.background == "night" and scene.weather in ("sunny", "dusk"), "at night there is neither sun nor dusk"),
        (
            scene.weather == "foggy"
            and (scene.background in ("sky", "ice", "road", "night") or scene.style == "sepia"),
            "fog hides this background",
        ),
        (scene.background == "ice" and scene.weather == "snowy", "snow does not show on ice"),
        (scene.style == "pixelated" and scene.background == "night" and scene.weather == "snowy", "blocks hide flakes"),
        (scene.weather == "foggy" and scene.surroundings == "clouds", "fog hides clouds"),
        (scene.texture == "dotted" and scene.main_object in ("ring", "cross", "crescent"), "too thin for dots"),
        (
            scene.style == "outline" and scene.colour == ("white" if is_dark(scene) else "black"),
            "the outline has the colour of the object",
        ),
        (not is_visible(scene), f"{scene.colour} does not stand out from {scene.background}"),
    )
    return next((reason for is_violated, reason in rules if is_violated), None)


def _sample_transitions(
    num_frames: int, num_shots: int, kind: str | None, fps: float, rng: np.random.Generator
) -> list[Transition]:
    """Sample transitions so that every shot has at least `_MIN_SHOT_FRAMES` frames, some of them outside transitions."""
    spare_frames = num_frames - num_shots * _MIN_SHOT_FRAMES
    weights = rng.uniform(0.5, 1.5, size=num_shots)
    ends = np.cumsum(weights / weights.sum() * spare_frames + _MIN_SHOT_FRAMES)
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


def _blend_transition(old: np.ndarray, new: np.ndarray, frame: int, transition: Transition) -> np.ndarray:
    """One frame of a gradual transition: both shots blended (dissolve), or one of them darkened (fade through black)."""
    progress = (frame - transition.start_frame + 0.5) / (transition.end_frame - transition.start_frame)
    if transition.kind == "dissolve":
        return cv2.addWeighted(old, 1.0 - progress, new, progress, 0.0)
    source, gain = (old, 1.0 - 2.0 * progress) if progress < 0.5 else (new, 2.0 * progress - 1.0)
    return cv2.convertScaleAbs(source, alpha=gain)


def _frame_renderer(
    scene: SceneAttributes, num_frames: int, height_px: int, width_px: int, fps: float, rng: np.random.Generator
) -> Callable[[int], np.ndarray]:
    """Return a function from a frame number of the shot to its pixels; static layers are rendered once, here."""
    poses = object_trajectory(scene, num_frames, height_px, width_px, fps, rng)
    camera_poses = camera_trajectory(scene.camera, num_frames, height_px, width_px)
    background = paint_background(scene, height_px, width_px, rng)
    margin_px = (background.shape[1] - width_px) // 2
    dark = is_dark(scene)
    num_square_units = height_px * width_px / min(height_px, width_px) ** 2
    weather = Weather(scene.weather, height_px, width_px, is_dark=dark, num_units=num_square_units, rng=rng)
    grain = Grain(height_px, width_px, rng) if scene.style == "noisy" else None
    contour = contour_colour(scene)
    overlay = render_text(scene.text, height_px, width_px, text_at_bottom(scene)) if scene.text else None

    def render_frame(frame: int) -> np.ndarray:
        camera_pose, seconds = camera_poses[frame], frame / fps
        if scene.camera == "fixed":
            picture = background.copy()
        else:
            picture = _camera_view(background, camera_pose.shift_px - margin_px, camera_pose.zoom, height_px, width_px)
        weather.draw_behind_object(picture, seconds)
        draw_object(picture, scene, poses[frame], contour)
        weather.draw_in_front(picture, seconds)
        if scene.style == "pixelated":
            picture = pixelate(picture)
        if overlay is not None:
            opacity, letters = overlay
            picture = (picture + (letters - picture) * opacity + 0.5).astype(np.uint8)
        return grain.add(picture) if grain is not None else picture

    return render_frame


def _camera_view(background: np.ndarray, shift_px: float, zoom: float, height_px: int, width_px: int) -> np.ndarray:
    """Crop the background layer to the camera's view, magnified about the centre of the frame."""
    centre_x, centre_y = width_px / 2 - 0.5, height_px / 2 - 0.5
    matrix = np.asarray(
        [[zoom, 0.0, centre_x + zoom * (shift_px - centre_x)], [0.0, zoom, centre_y * (1 - zoom)]], np.float64
    )
    return cv2.warpAffine(
        background, matrix, (width_px, height_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
