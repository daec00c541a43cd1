"""What is asked of `recaption sample`, prompt by prompt: words, images, videos, and what is to become of them.

    asks = asked(("it moves left",), media=MediaFlags(image=("red.png",)), settings=settings)
    asks = read_prompts_file("prompts.jsonl", defaults)
    asks[0].mode                                                # "image"

A .txt file has a prompt per line. A .jsonl file has an object per line, with the fields of `Ask`:

    {"prompt": "waves", "image": "sea.jpg", "seed": 3}
    {"prompt": "", "video": ["a.mp4", "b.mp4"], "mode": "connect", "new_frames": 16}
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.recipe.settings import SampleSettings
from recaption.errors import UsageError

MODES = ("text", "image", "extend", "extend-back", "edit", "connect", "loop", "inbetween")


HAVE_NEW_FRAMES = ("extend", "extend-back", "connect", "loop")


DEFAULT_STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class MediaFlags:
    """Images and videos of a prompt."""

    image: tuple[str, ...] = ()
    """One to animate, or several to fill the time between; any size, file or URI."""
    video: tuple[str, ...] = ()
    """One to extend, edit or loop, or several to connect; any size and rate."""
    mode: str = ""
    """text, image, extend, extend-back, edit, connect, loop or inbetween; where it is left out, what is given has to leave
    no choice."""
    new_frames: int | None = None
    """Frames added to a video, in each gap of connect, or to close a loop; a multiple of the compressor's frame stride (4).
    Default: what fits beside the given ones into the length that the model was trained at."""
    strength: float | None = None
    """Of an edit, above 0 to 1: how much noise the video is put under; 1 forgets it. Default: 0.6."""
    at_seconds: tuple[float, ...] = ()
    """Of inbetween: when each image is shown; default: evenly, from the first frame to the last."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One video that is asked for; also a line of a .jsonl file."""

    prompt: str = ""
    """Blank: whatever the given frames suggest."""
    image: tuple[str, ...] = ()
    video: tuple[str, ...] = ()
    mode: str = ""
    seed: int = 0
    num_frames: int = 0
    height_px: int = 0
    width_px: int = 0
    new_frames: int | None = None
    strength: float | None = None
    at_seconds: tuple[float, ...] = ()

    def checked(self) -> Ask:
        """The same with its mode named.

        Raises:
            UsageError: media that the mode does not take, or an option that has no effect in it.
        """
        mode = self.mode or self._only_mode()
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
            raise UsageError(f"{mode} takes {TAKES[mode]}; {images} images and {videos} videos were given")
        if mode == "text" and not self.prompt.strip():
            raise UsageError("there is nothing to sample from: pass --prompt, --image, --video or --prompts-file")
        has_length = mode in ("text", "image", "inbetween") or (mode == "loop" and not self.video)
        for name, has_effect in (
            ("new_frames", mode in HAVE_NEW_FRAMES),
            ("strength", mode == "edit"),
            ("at_seconds", mode == "inbetween"),
            ("num_frames", has_length),
        ):
            if getattr(self, name) not in (None, (), 0) and not has_effect:
                instead = ": new_frames says how many are added" if name == "num_frames" and mode != "edit" else ""
                raise UsageError(f"{name} has no effect in mode {mode}{instead}; leave it out")
        return dataclasses.replace(self, mode=mode)

    def _only_mode(self) -> str:
        if len(self.video) == 1 and not self.image:
            raise UsageError("say what is to become of the video: --mode extend, extend-back, edit or loop")
        if self.image and self.video:
            raise UsageError("images and videos in one prompt are not understood: give either")
        if self.video:
            return "connect"
        return ("text", "image", "inbetween")[min(len(self.image), 2)]


TAKES = {
    "text": "no image and no video",
    "image": "one image",
    "extend": "one video",
    "extend-back": "one video",
    "edit": "one video",
    "connect": "two videos or more",
    "loop": "one video, one image or none",
    "inbetween": "two images or more",
}


def asked(
    prompts: Sequence[str],
    settings: SampleSettings,
    *,
    media: MediaFlags | None = None,
    prompts_file: str | None = None,
) -> list[Ask]:
    """Everything that the flags ask for, checked; media go with every prompt.

    Raises:
        UsageError: nothing asked for, both prompts and a file of them, a file that cannot be read, or as `Ask.checked`.
    """
    media = media or MediaFlags()
    own = {name: getattr(settings, name) for name in ("seed", "num_frames", "height_px", "width_px")}
    if prompts_file:
        if prompts:
            raise UsageError("pass --prompt or --prompts-file, not both")
        if media != MediaFlags():
            raise UsageError("with --prompts-file images, videos and modes belong into the lines of a .jsonl file")
        return read_prompts_file(prompts_file, Ask(**own))
    given: dict[str, Any] = {f.name: getattr(media, f.name) for f in dataclasses.fields(media)}
    return [Ask(prompt=text, **own, **given).checked() for text in prompts or ("",)]


def read_prompts_file(path: str, defaults: Ask) -> list[Ask]:
    """A .txt file with a prompt per line, or a .jsonl file with an `Ask` per line. Blank lines are passed over.

    Paths in a .jsonl file are relative to its folder.

    Args:
        defaults: seed and size where a line does not say them.

    Raises:
        UsageError: no such file, another kind of file, or a line that is not understood (it is named).
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
        return [dataclasses.replace(defaults, prompt=line).checked() for _, line in lines]
    if not path.endswith(".jsonl"):
        raise UsageError(f"{path} is neither a .txt file (a prompt per line) nor a .jsonl file (an object per line)")
    asks = []
    for number, line in lines:
        try:
            asks.append(_ask_of(line, defaults, os.path.dirname(path)))
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
    return asks


def _ask_of(line: str, defaults: Ask, folder: str) -> Ask:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError('not an object, such as {"prompt": "waves", "image": "sea.jpg"}')
    known = {f.name: f.type for f in dataclasses.fields(Ask)}
    for name, value in fields.items():
        if name not in known:
            raise UsageError(f"unknown field {name!r} (known: {', '.join(known)})")
        fields[name] = _value(name, value)
    for name in ("image", "video"):
        fields[name] = tuple(_beside(folder, uri) for uri in fields.get(name, ()))
    own: dict[str, Any] = {"num_frames": 0} | fields
    ask = dataclasses.replace(defaults, **own).checked()
    has_own_length = ask.video or ask.num_frames
    return ask if has_own_length else dataclasses.replace(ask, num_frames=defaults.num_frames)


def _value(name: str, value: Any) -> Any:
    """A JSON value as the field wants it."""
    if name in ("prompt", "mode"):
        wanted, fits = "a text", isinstance(value, str)
    elif name in ("image", "video"):
        value = [value] if isinstance(value, str) else value
        wanted, fits = "a path or a list of paths", isinstance(value, list) and all(isinstance(v, str) for v in value)
    elif name == "at_seconds":
        wanted, fits = "a list of numbers", isinstance(value, list) and all(_is_number(v) for v in value)
    elif name == "strength":
        wanted, fits = "a number", _is_number(value)
    else:
        wanted, fits = "a whole number", _is_number(value) and isinstance(value, int)
    if not fits:
        raise UsageError(f"{name} = {json.dumps(value)} is not {wanted}")
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _beside(folder: str, uri: str) -> str:
    return uri if "://" in uri or os.path.isabs(uri) or not folder else os.path.join(folder, uri)
