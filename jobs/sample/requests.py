"""Sampling requests of `recaption sample`: prompt, images or videos, and the generation mode.

    requests = requests_from_flags(("it moves left",), settings, media=MediaFlags(image=("red.png",)))
    requests = read_prompts_file("prompts.jsonl", defaults)
    requests[0].mode                                            # "image"

A .txt file has a prompt per line. A .jsonl file has an object per line, with the fields of `SampleRequest`:

    {"prompt": "waves", "image": "sea.jpg", "seed": 3}
    {"prompt": "", "video": ["a.mp4", "b.mp4"], "mode": "connect", "new_frames": 16}
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.recipe.settings import SampleSettings
from recaption.errors import UsageError

MODES = ("text", "image", "extend", "extend-back", "edit", "connect", "loop", "inbetween")
MODES_WITH_NEW_FRAMES = ("extend", "extend-back", "connect", "loop")
DEFAULT_STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class MediaFlags:
    """Images and videos that condition the generation."""

    image: tuple[str, ...] = ()
    """One first frame to animate, or several keyframes to interpolate; files or URIs of any size."""
    video: tuple[str, ...] = ()
    """One video to extend, edit or loop, or several to connect; any size and frame rate."""
    mode: str = ""
    """text, image, extend, extend-back, edit, connect, loop or inbetween; default: inferred from the images and videos,
    required with a single video."""
    new_frames: int | None = None
    """Frames to generate: added to a video, in each gap of connect, or to close a loop; a multiple of the compressor's
    frame stride (4). Default: what the trained length leaves beside the conditioning frames."""
    strength: float | None = None
    """edit: noise level of the start, in (0, 1]; 1 ignores the input video. Default: 0.6, with --invert 1."""
    invert: bool = False
    """edit: start from the noise that the video has under its own caption, not from drawn noise: keeps more of it."""
    source_prompt: str = ""
    """invert: caption of the input video, in the style of --prompt; default: by --captioner."""
    at_seconds: tuple[float, ...] = ()
    """inbetween: time of each image; default: evenly spaced from the first frame to the last."""


@dataclass(frozen=True, kw_only=True)
class FilmFlags:
    """What a film is sampled from, instead of prompts."""

    script: str | None = None
    """A film: a .jsonl file with a shot per line (prompt, seconds or frames, transition, subject, seed)."""
    story: str | None = None
    """A film from one text, with shots planned by the expander's language model, or by templates without one."""

    def is_given(self, prompts: Sequence[str], prompts_file: str | None, media: MediaFlags) -> bool:
        """Raises UsageError where both are given, or other flags say what to sample too."""
        if self == FilmFlags():
            return False
        if self.script is not None and self.story is not None:
            raise UsageError("a film is sampled from a script or from a story: pass one of --script and --story")
        if prompts or prompts_file or media != MediaFlags():
            raise UsageError(
                "a film has its prompts in its script or story: leave out prompts, images, videos and modes"
            )
        return True


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One video to generate; also a line of a .jsonl prompts file."""

    prompt: str = ""
    """Empty: guided by the conditioning frames only."""
    image: tuple[str, ...] = ()
    video: tuple[str, ...] = ()
    mode: str = ""
    seed: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    height_px: int = 0
    width_px: int = 0
    new_frames: int | None = None
    strength: float | None = None
    invert: bool = False
    source_prompt: str = ""
    at_seconds: tuple[float, ...] = ()

    def resolved(self) -> SampleRequest:
        """This request with its mode filled in and its options checked.

        Raises:
            UsageError: media that do not fit the mode, or an option that has no effect in it.
        """
        mode = self.mode or self._infer_mode()
        if mode not in MODES:
            raise UsageError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
        images, videos = len(self.image), len(self.video)
        fits = {
            "text": images == videos == 0,
            "image": images == 1 and videos == 0,
            "connect": images == 0 and videos > 1,
            "loop": images + videos <= 1,
            "inbetween": images > 1 and videos == 0,
        }.get(mode, images == 0 and videos == 1)
        if not fits:
            raise UsageError(f"{mode} takes {MODE_INPUTS[mode]}; got {images} images and {videos} videos")
        if mode == "text" and not self.prompt.strip():
            raise UsageError("there is nothing to sample from: pass --prompt, --image, --video or --prompts-file")
        has_length = mode in ("text", "image", "inbetween") or (mode == "loop" and not self.video)
        for name, has_effect in (
            ("new_frames", mode in MODES_WITH_NEW_FRAMES),
            ("strength", mode == "edit"),
            ("invert", mode == "edit"),
            ("source_prompt", self.invert),
            ("at_seconds", mode == "inbetween"),
            ("num_frames", has_length),
            ("seconds", has_length and mode != "loop"),
        ):
            if getattr(self, name) not in (None, (), 0, "") and not has_effect:
                instead = ": new_frames sets how many are added" if name == "num_frames" and mode != "edit" else ""
                where = "without invert" if name == "source_prompt" else f"in mode {mode}"
                raise UsageError(f"{name} has no effect {where}{instead}; leave it out")
        if self.seconds and (self.num_frames or not 0 < self.seconds < math.inf):
            raise UsageError(
                f"seconds = {self.seconds:g} must be above 0, and instead of num_frames = {self.num_frames}"
            )
        return dataclasses.replace(self, mode=mode)

    def _infer_mode(self) -> str:
        if len(self.video) == 1 and not self.image:
            raise UsageError("a single video needs a mode: pass --mode extend, extend-back, edit or loop")
        if self.image and self.video:
            raise UsageError("images and videos cannot be mixed in one prompt: pass one kind")
        if self.video:
            return "connect"
        return ("text", "image", "inbetween")[min(len(self.image), 2)]


MODE_INPUTS = {
    "text": "no image and no video",
    "image": "one image",
    "extend": "one video",
    "extend-back": "one video",
    "edit": "one video",
    "connect": "two videos or more",
    "loop": "one video, one image or none",
    "inbetween": "two images or more",
}


def requests_from_flags(
    prompts: Sequence[str],
    settings: SampleSettings,
    *,
    media: MediaFlags | None = None,
    prompts_file: str | None = None,
) -> list[SampleRequest]:
    """The resolved requests of the command line, one per prompt; the media flags apply to every prompt.

    Raises:
        UsageError: nothing to sample, both prompts and a prompts file, an unreadable file, or as `SampleRequest.resolved`.
    """
    media = media or MediaFlags()
    sizes = {name: getattr(settings, name) for name in ("seed", "num_frames", "seconds", "height_px", "width_px")}
    if prompts_file:
        if prompts:
            raise UsageError("pass --prompt or --prompts-file, not both")
        if media != MediaFlags():
            raise UsageError("with --prompts-file put images, videos and modes into the lines of a .jsonl file")
        return read_prompts_file(prompts_file, SampleRequest(**sizes))
    media_fields: dict[str, Any] = {f.name: getattr(media, f.name) for f in dataclasses.fields(media)}
    return [SampleRequest(prompt=text, **sizes, **media_fields).resolved() for text in prompts or ("",)]


def read_prompts_file(path: str, defaults: SampleRequest) -> list[SampleRequest]:
    """A .txt file with a prompt per line, or a .jsonl file with a `SampleRequest` per line. Blank lines are skipped.

    Paths in a .jsonl file are relative to its folder.

    Args:
        defaults: seed and size of lines that do not set them.

    Raises:
        UsageError: no such file, another file type, or an invalid line (the message has its number).
    """
    import fsspec

    fs, inner = fsspec.url_to_fs(path)
    if not fs.exists(inner):
        raise UsageError(f"no such prompts file: {path}")
    lines = [(n, line.strip()) for n, line in enumerate(fs.cat_file(inner).decode("utf-8").splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UsageError(f"{path} has no prompt in it")
    if path.endswith(".txt"):
        return [dataclasses.replace(defaults, prompt=line).resolved() for _, line in lines]
    if not path.endswith(".jsonl"):
        raise UsageError(f"{path} is neither a .txt file (a prompt per line) nor a .jsonl file (an object per line)")
    requests = []
    for number, line in lines:
        try:
            requests.append(_request_from_line(line, defaults, os.path.dirname(path)))
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
    return requests


def _request_from_line(line: str, defaults: SampleRequest, folder: str) -> SampleRequest:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError('not an object, such as {"prompt": "waves", "image": "sea.jpg"}')
    known = {f.name: f.type for f in dataclasses.fields(SampleRequest)}
    for name, value in fields.items():
        if name not in known:
            raise UsageError(f"unknown field {name!r} (known: {', '.join(known)})")
        fields[name] = _value(name, value)
    for name in ("image", "video"):
        fields[name] = tuple(_relative_to(folder, uri) for uri in fields.get(name, ()))
    changes: dict[str, Any] = {"num_frames": 0, "seconds": 0.0} | fields
    request = dataclasses.replace(defaults, **changes).resolved()
    has_own_length = request.video or request.num_frames or request.seconds
    if has_own_length:
        return request
    return dataclasses.replace(request, num_frames=defaults.num_frames, seconds=defaults.seconds)


def _value(name: str, value: Any) -> Any:
    """A JSON value converted to the type of the field; UsageError if it does not fit."""
    if name in ("prompt", "mode", "source_prompt"):
        expected, fits = "a text", isinstance(value, str)
    elif name in ("image", "video"):
        value = [value] if isinstance(value, str) else value
        expected, fits = "a path or a list of paths", isinstance(value, list) and all(isinstance(v, str) for v in value)
    elif name == "at_seconds":
        expected, fits = "a list of numbers", isinstance(value, list) and all(_is_number(v) for v in value)
    elif name == "invert":
        expected, fits = "true or false", isinstance(value, bool)
    elif name in ("strength", "seconds"):
        expected, fits = "a number", _is_number(value)
    else:
        expected, fits = "a whole number", _is_number(value) and isinstance(value, int)
    if not fits:
        raise UsageError(f"{name} = {json.dumps(value)} is not {expected}")
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _relative_to(folder: str, uri: str) -> str:
    return uri if "://" in uri or os.path.isabs(uri) or not folder else os.path.join(folder, uri)
