"""Caption text: made clean, then judged. Nothing here looks at pixels.

clean("a red  circle moves left .<end_of_text>")        "a red circle moves left."
strip_boilerplate("The video shows a red circle.")       ("A red circle.", "The video shows")
fault_in("a a a a a a")                                  "looping"
reason_if_bad("a red circle moves left.", ended=True)    None
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from recaption.records import CaptionFields

FIELD_KINDS = tuple(field.name for field in dataclasses.fields(CaptionFields))
"""Kinds that answer one question in a word or a few."""


KINDS = ("descriptive", "short", *FIELD_KINDS)
"""Ways in which one captioner can speak about one clip."""


FAULTS = ("no_answer", "empty", "boilerplate", "refusal", "looping", "truncated", "over_long", "low_score", "repeated")
"""Why a caption is refused, in the order in which it is looked for. `no_answer`: an endpoint had none. The text alone tells
the next four; `over_long` needs the text encoder of the training, `low_score` the pixels, `repeated` all captions of the
set."""


MIN_WORDS = 2
"""A caption of one word names a thing but describes nothing; a field is one."""


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


MAX_LEADING_PHRASES = 4
""""Sure! Here is a caption: In this video, we see a dog" has three."""


_PICTURE = "video|clip|footage|image|photo|photograph|picture"


_MEDIUM = rf"(?:(?:short|brief|given|provided)\s+)?(?:(?:video|film)\s+)?(?:{_PICTURE}|frame)s?"


_SEES = r"(?:we|you|one|viewers?|the viewer)\s+(?:can\s+)?(?:see|sees|observe|observes|watch|watches)"


_SHOWS = r"(?:shows?|showcases?|depicts?|displays?|features?|captures?|presents?|portrays?|contains?)"


_BOILERPLATE = re.compile(
    rf"""\s*(?:
      (?:sure|certainly|of\ course|okay|absolutely)\s*[,.!:]+\s*
    | here(?:\ is|\ are|['’]s)\s+[^:.]{{0,60}}:\s*
    | (?:caption|description|answer|response|assistant)\s*:\s*
    | (?:in|throughout)\s+(?:the|this)\s+{_MEDIUM}\s*,\s*(?:{_SEES}\s+|there\s+(?:is|are)\s+)?
    | (?:in|throughout)\s+(?:the|this)\s+{_MEDIUM}\s+(?:{_SEES}|there\s+(?:is|are))\s+
    | (?:the|this)\s+{_MEDIUM}\s+(?:{_SHOWS}|(?:begins|starts|opens)\s+with|is\s+(?:about|of|showing))\b\s*
    | (?:an?\s+)?(?:{_PICTURE})(?:\s+(?:clip|footage))?\s+(?:of|showing|depicting)\b\s*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Only as it stands here: "A flat clip shows" and "A black and white photo of" say how the clip looks."""


_REFUSAL = re.compile(
    r"(?:^|[.!?]\s+)(?:"
    r"as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|(?:i['’]?m|i am) (?:sorry|unable|not able|afraid)\b"
    r"|i apologi[sz]e\b"
    r"|(?:sorry|unfortunately)\b[,.!]? (?:but )?(?:i|no)\b"
    r"|i (?:can ?not|can['’]t|could not|am unable to|['’]m unable to) "
    r"(?:see|view|help|assist|describe|provide|watch|access|determine|identify|process)\b"
    r"|no (?:video|image|frames?) (?:was|were|is|has been|have been) (?:provided|given|attached|uploaded)\b"
    r"|(?:please|could you) (?:provide|upload|share)\b)",
    re.IGNORECASE,
)
"""At the start of a sentence: what is said or written in a clip may refuse, too."""


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


def strip_boilerplate(text: str) -> tuple[str, str]:
    """(caption without the phrases that say nothing about the clip, these phrases).

    "The video shows a dog." gives "A dog."; the phrases are "" where there are none, or where nothing would be left.
    """
    start = 0
    for _ in range(MAX_LEADING_PHRASES):
        match = _BOILERPLATE.match(text, start)
        if not match:
            break
        start = match.end()
    rest = clean(text[start:])
    if not start or len(words_in(rest)) < MIN_WORDS:
        return text, ""
    return (rest[0].upper() + rest[1:] if text[:1].isupper() else rest), text[:start].strip(" ,;:")


def fault_in(text: str, *, ended: bool = True, kind: str = "descriptive") -> str | None:
    """First of `FAULTS` that the text shows, None where it may be used.

    Args:
        ended: whether the captioner said its end token; without it the text stops in the middle.
        kind: one of `KINDS`; a field may be one word.
    """
    words = words_in(text)
    if len(words) < (1 if kind in FIELD_KINDS else MIN_WORDS):
        return "empty"
    if (match := _BOILERPLATE.match(text)) and len(words_in(text[match.end() :])) < MIN_WORDS:
        return "boilerplate"
    if _REFUSAL.search(text):
        return "refusal"
    if is_looping(words):
        return "looping"
    if not ended:
        return "truncated"
    return None


def reason_if_bad(text: str, *, ended: bool = True, kind: str = "descriptive") -> str | None:
    """`bad_caption` (one of `errors.DROP_REASONS`) where the caption has a fault, else None."""
    return "bad_caption" if fault_in(text, ended=ended, kind=kind) else None


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
