"""Video clips rendered from captioned photos with a known camera motion.

    photos = read_photos("FOLDER/flickr8k-train.tar")          # WebDataset form: key.webp (or .jpg, .png), key.json
    clip = photo_clip(photos, 7, frame_px=192, num_frames=8)
    clip.pixels_THWC, clip.captions[0], clip.motion     "A dog runs through the water. The camera pans left."

A crop window moves over the photo; every frame is resized to a square, as by `FramePreprocessor`. The window always covers
most of the photo, so that the photo's captions stay true of the clip.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from recaption.errors import UsageError

CUT = "cut"


MOTIONS = {
    "pans left": "the camera pans left",
    "pans right": "the camera pans right",
    "pans up": "the camera pans up",
    "pans down": "the camera pans down",
    "zooms in": "the camera zooms in",
    "zooms out": "the camera zooms out",
    "fixed": "the camera is fixed",
    CUT: "the video cuts to",
}
"""Motion of a clip -> motion phrase of its caption."""


_SUFFIXES = (".webp", ".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A captioned photo, still encoded."""

    key: str
    encoded: bytes
    captions: tuple[str, ...]

    def decode(self) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded)).convert("RGB")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoClip:
    """A clip rendered from one photo, or two with a cut between them."""

    pixels_THWC: np.ndarray
    """uint8, square."""
    captions: tuple[str, ...]
    """Human captions, each followed by the motion phrase."""
    plain_captions: tuple[str, ...]
    """Human captions alone; of the first photo if there are two."""
    motion: str
    """One of `MOTIONS`."""


def read_photos(path: str | Path) -> list[Photo]:
    """All photos of a WebDataset tar, sorted by key.

    Raises:
        UsageError: no such tar, or no captioned photo in it.
    """
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}; a tar of photos holds KEY.webp and KEY.json with captions")
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = Path(member.name)
            stream = tar.extractfile(member)
            if stream is not None and name.suffix in (*_SUFFIXES, ".json"):
                members.setdefault(name.stem, {})["text" if name.suffix == ".json" else "image"] = stream.read()
    photos = [
        Photo(key=key, encoded=found["image"], captions=_captions(found["text"]))
        for key, found in sorted(members.items())
        if found.keys() == {"image", "text"}
    ]
    if not photos:
        raise UsageError(f"{path} holds no pair of KEY.webp and KEY.json")
    return photos


def _captions(text: bytes) -> tuple[str, ...]:
    return tuple(caption for caption in map(tidy, json.loads(text)["captions"]) if caption)


def tidy(caption: str) -> str:
    """Normalise a caption: `A dog runs , and jumps .` -> `A dog runs, and jumps`."""
    text = re.sub(r"\s+", " ", caption.replace('"', "")).strip()
    text = re.sub(r"\s+([.,;:!?'])", r"\1", text)
    return text.rstrip(" .,;:")


def with_motion(caption: str, motion: str, second: str = "") -> str:
    """The training caption: a caption and its motion phrase."""
    if motion == CUT:
        return f"{caption}. Then {MOTIONS[CUT]} {second[:1].lower()}{second[1:]}."
    phrase = MOTIONS[motion]
    return f"{caption}. {phrase[0].upper()}{phrase[1:]}."


def split_motion(text: str) -> tuple[str, str]:
    """Split a generated caption into (content, motion); motion is "" if there is no motion phrase."""
    lower = text.lower()
    found = [(lower.find(phrase), motion) for motion, phrase in MOTIONS.items() if phrase in lower]
    if not found:
        return text.strip(" ."), ""
    position, motion = min(found)
    return re.sub(r"[\s.,]*(then)?\s*$", "", text[:position], flags=re.IGNORECASE).strip(" ."), motion


def photo_clip(
    photos: Sequence[Photo],
    number: int,
    *,
    frame_px: int,
    num_frames: int,
    motion: str | None = None,
    augment: bool = True,
) -> PhotoClip:
    """Clip `number` of an endless stream: photo number % len(photos), everything else seeded by `number`.

    Args:
        motion: one of `MOTIONS`; random if None.
        augment: random flip, brightness and colour; off for evaluation.
    """
    rng = np.random.default_rng([number, 11])
    motion = motion or list(MOTIONS)[int(rng.integers(len(MOTIONS)))]
    first = photos[number % len(photos)]
    shots = [first]
    if motion == CUT:
        other = int(rng.integers(len(photos) - 1)) if len(photos) > 1 else 0
        shots.append(photos[(number + 1 + other) % len(photos)])
    frames: list[np.ndarray] = []
    cut = int(rng.integers(3, num_frames - 2)) if motion == CUT and num_frames > 5 else num_frames // 2
    spans = [num_frames] if motion != CUT else [cut, num_frames - cut]
    for photo, span in zip(shots, spans, strict=True):
        image = _augmented(photo.decode(), rng) if augment else photo.decode()
        path = _fixed_path(rng, span) if motion == CUT else _camera_path(motion, rng, num_frames)
        frames += [_crop(image, box, frame_px) for box in path]
    last_captions = shots[-1].captions
    captions = tuple(
        with_motion(caption, motion, last_captions[index % len(last_captions)])
        for index, caption in enumerate(first.captions)
    )
    return PhotoClip(pixels_THWC=np.stack(frames), captions=captions, plain_captions=first.captions, motion=motion)


Box = tuple[float, float, float, float]
"""Centre x, centre y, width, height of the crop window, as fractions of the photo."""


def _camera_path(motion: str, rng: np.random.Generator, num_frames: int) -> list[Box]:
    if motion == "fixed":
        return _fixed_path(rng, num_frames)
    ramp = np.linspace(-0.5, 0.5, num_frames)
    ramp = ramp if rng.random() < 0.7 else np.sign(ramp) * np.abs(2 * ramp) ** 1.5 / 2  # some ease in and out
    if motion.startswith("pans"):
        side = float(rng.uniform(0.62, 0.85))
        travel = float(rng.uniform(0.6, 1.0)) * (1 - side)
        across = float(rng.uniform(max(side, 0.75), 1.0))
        rest = (1 - side - travel) * float(rng.uniform(-0.5, 0.5))
        drift = (1 - across) * float(rng.uniform(-0.5, 0.5))
        sign = -1 if motion in ("pans left", "pans up") else 1
        along = 0.5 + rest + sign * travel * ramp
        if motion in ("pans left", "pans right"):
            return [(float(p), 0.5 + drift, side, across) for p in along]
        return [(0.5 + drift, float(p), across, side) for p in along]
    factor = float(rng.uniform(1.3, 1.8))
    wide = float(rng.uniform(0.88, 1.0))
    narrow = wide / factor
    target = 0.5 + rng.uniform(-0.5, 0.5, size=2) * min(1 - narrow, 0.25)
    zoom = ramp + 0.5 if motion == "zooms in" else 0.5 - ramp
    tall = float(rng.uniform(0.85, 1.0))
    boxes = []
    for fraction in zoom.tolist():
        side = wide * (narrow / wide) ** fraction
        x, y = (0.5 + (float(centre) - 0.5) * (wide - side) / (wide - narrow) for centre in target)
        boxes.append((x, y, side, side * tall))
    return boxes


def _fixed_path(rng: np.random.Generator, num_frames: int) -> list[Box]:
    width, height = (float(side) for side in rng.uniform(0.72, 1.0, size=2))
    x, y = 0.5 + (1 - width) * rng.uniform(-0.5, 0.5), 0.5 + (1 - height) * rng.uniform(-0.5, 0.5)
    shake = 0.004 * rng.standard_normal((num_frames, 2)) if rng.random() < 0.5 else np.zeros((num_frames, 2))
    return [(float(x + dx), float(y + dy), width, height) for dx, dy in shake]


def _crop(image: Image.Image, box: Box, frame_px: int) -> np.ndarray:
    width, height = image.size
    x, y, w, h = box
    half_w, half_h = min(w, 1.0) / 2, min(h, 1.0) / 2
    x, y = min(max(x, half_w), 1 - half_w), min(max(y, half_h), 1 - half_h)
    edges = ((x - half_w) * width, (y - half_h) * height, (x + half_w) * width, (y + half_h) * height)
    return np.asarray(image.resize((frame_px, frame_px), Image.Resampling.BILINEAR, box=edges))


def _augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Color):
        image = enhancer(image).enhance(float(rng.uniform(0.8, 1.2)))
    return image
