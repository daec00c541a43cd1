"""Caption text: made clean, then judged. Nothing here looks at pixels.

clean("a red  circle moves left .<end_of_text>")        "a red circle moves left."
fault_in("a a a a a a")                                  "looping"
reason_if_bad("a red circle moves left.", ended=True)    None
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from recaption.records import CaptionFields

KINDS = ("descriptive", "short", *(field.name for field in dataclasses.fields(CaptionFields)))
"""Ways of captioning a clip. A captioner may know some; one that knows no others speaks `descriptive`."""

FAULTS = ("empty", "looping", "truncated")
"""Why a caption is refused, in the order in which it is looked for."""

MIN_WORDS = 2
"""A caption of one word names a thing but describes nothing."""
MAX_REPEATS = 3
"""The same words more often than this in a row ("a 2 2 2 2", "on the on the on the on the") are a loop."""
MAX_LOOP_WORDS = 6
"""Longest run of words that is looked for when counting repeats in a row."""
MIN_DISTINCT_SHARE = 0.5
"""Of all runs of four words, the share that must be distinct: a sentence said three times falls below."""

_MARKERS = re.compile(r"<(?:start_of_text|end_of_text|pad|sot|eot|s|/s|unk)>|\[(?:CLS|SEP|PAD|UNK)\]", re.IGNORECASE)
_SPACES = re.compile(r"\s+")
_SPACE_BEFORE = re.compile(r"\s+([,.;:!?%)\]])")
_SPACE_AFTER_OPENING = re.compile(r"([(\[])\s+")
_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')
_STUTTERED_MARKS = re.compile(r"([,;:])\1+")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE_START = re.compile(r"(^|[.!?]\s+)([a-z])")


def clean(text: str) -> str:
    """One line of normal text: special tokens and control characters gone, one space between words, marks attached.

    Words are never changed, so cleaning a clean caption gives the same caption.
    """
    text = unicodedata.normalize("NFC", _MARKERS.sub(" ", text))
    text = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf" and letter != "\ufffd")
    text = _SPACES.sub(" ", text).strip()
    text = _SPACE_AFTER_OPENING.sub(r"\1", _SPACE_BEFORE.sub(r"\1", text))
    text = _QUOTED.sub(r'"\1"', text)
    return _STUTTERED_MARKS.sub(r"\1", text).lstrip(",.;:!? ").rstrip(" ,;:")


def sentence_case(text: str) -> str:
    """Capital letters back at the start of each sentence, for captioners whose vocabulary has none."""
    return _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def words_in(text: str) -> list[str]:
    """Lower-case words, marks left out."""
    return _WORD.findall(text.lower())


def fault_in(text: str, *, ended: bool = True) -> str | None:
    """First of `FAULTS` that the caption has, None where it may be used.

    Args:
        ended: whether the captioner said its end token; without it the text stops in the middle.
    """
    words = words_in(text)
    if len(words) < MIN_WORDS:
        return "empty"
    if is_looping(words):
        return "looping"
    if not ended:
        return "truncated"
    return None


def reason_if_bad(text: str, *, ended: bool = True) -> str | None:
    """`bad_caption` (one of `errors.DROP_REASONS`) where the caption has a fault, else None."""
    return "bad_caption" if fault_in(text, ended=ended) else None


def is_looping(words: Sequence[str]) -> bool:
    """Whether words repeat in a row more than `MAX_REPEATS` times, or too few of the four-word runs are distinct."""
    for length in range(1, MAX_LOOP_WORDS + 1):
        repeated = 0
        for index in range(length, len(words)):
            repeated = repeated + 1 if words[index] == words[index - length] else 0
            if repeated >= length * MAX_REPEATS:
                return True
    runs = [tuple(words[index : index + 4]) for index in range(len(words) - 3)]
    return len(runs) >= 8 and len(set(runs)) / len(runs) < MIN_DISTINCT_SHARE
