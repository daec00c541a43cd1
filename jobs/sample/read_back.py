"""Reads the shots of a film back: a captioner describes each, and its subject is looked for in the caption.

read = read_back(["a red circle"], captions=["A red circle moves left."])
read[0].colour, read[0].object, read[0].is_subject_read     # Attribute("red", "red"), Attribute("circle", "circle"), True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recaption.captioners.registry import load_captioner
from recaption.captions.text import tokenize_words
from recaption.prompts.style import content_words
from recaption.scenes.captions import fields_in


@dataclass(frozen=True, slots=True)
class Attribute:
    """What a prompt asks for and what the caption says."""

    asked: str
    """"" where the prompt names none."""
    read: str
    """"" where the caption names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadShot:
    """What a captioner read in a shot."""

    caption: str
    colour: Attribute
    object: Attribute
    """Of the subject, in the words of rendered scenes (recaption/scenes/captions.py)."""
    missing_words: tuple[str, ...]
    """Words of the subject that the caption does not have."""
    is_subject_read: bool | None
    """Colour and object as asked; where the subject names neither, all of its words. None without a subject."""


def caption_shots(videos: Sequence[np.ndarray], captioner: str, *, device: str) -> list[str]:
    """A caption of each shot; all at once."""
    return [caption.text for caption in load_captioner(captioner, device=device).caption(list(videos))]


def read_back(subjects: Sequence[str], captions: Sequence[str]) -> list[ReadShot]:
    """Compare the subject of each shot with its caption."""
    return [_read(subject, caption) for subject, caption in zip(subjects, captions, strict=True)]


def _read(subject: str, caption: str) -> ReadShot:
    asked, read = fields_in(subject), fields_in(caption)
    pairs = Attribute(asked.colour, read.colour), Attribute(asked.main_object, read.main_object)
    words = content_words(subject)
    missing = words - set(tokenize_words(caption))
    is_read = not missing
    if any(pair.asked for pair in pairs):
        is_read = all(pair.asked in ("", pair.read) for pair in pairs)
    return ReadShot(
        caption=caption,
        colour=pairs[0],
        object=pairs[1],
        missing_words=tuple(sorted(missing)),
        is_subject_read=is_read if words else None,
    )
