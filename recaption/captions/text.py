"""Normalizes caption text and finds faults in it, from the text alone.

clean("a red  circle moves left .<end_of_text>")        "a red circle moves left."
strip_boilerplate("The video shows a red circle.")       ("A red circle.", "The video shows")
find_fault("a a a a a a")                                  "looping"
find_fault("a red circle moves left.", ended=True)         None
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from recaption.records import CaptionFields

FIELD_KINDS = tuple(field.name for field in dataclasses.fields(CaptionFields))
"""Caption kinds that describe one aspect of a clip in a few words."""
CAPTION_KINDS = ("descriptive", "short", *FIELD_KINDS)
"""The kinds of caption that a captioner may write for a clip."""
FAULTS = ("no_answer", "empty", "boilerplate", "refusal", "looping", "truncated", "over_long", "low_score", "repeated")
"""Why a caption is bad, in the order of the checks. `no_answer`: the endpoint returned no text. The next five follow from
the text and how its generation ended; `over_long` needs the text encoder of the training, `low_score` the pixels, and
`repeated` all captions of the set."""
MIN_WORDS = 2
"""A caption of one word names an object but describes nothing; a field may be one word."""
MAX_REPEATS = 3
"""More consecutive repeats of a phrase than this are a loop ("a 2 2 2 2", "on the on the on the on the")."""
MAX_LOOP_WORDS = 6
"""Longest phrase, in words, whose consecutive repeats are counted."""
MIN_DISTINCT_FRACTION = 0.5
"""Fraction of four-word shingles that must be distinct: a sentence repeated three times is below it."""
_SPECIAL_TOKENS = re.compile(
    r"<(?:start_of_text|end_of_text|pad|sot|eot|s|/s|unk)>|\[(?:CLS|SEP|PAD|UNK)\]", re.IGNORECASE
)
_SPACES = re.compile(r"\s+")
_SPACE_BEFORE = re.compile(r"\s+([,.;:!?%)\]])")
_SPACE_AFTER_OPENING = re.compile(r"([(\[])\s+")
_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')
_REPEATED_PUNCTUATION = re.compile(r"([,;:])\1+")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE_START = re.compile(r"(^|[.!?]\s+)([a-z])")
MAX_LEADING_PHRASES = 4
""""Sure! Here is a caption: In this video, we see a dog" has three."""
_MEDIUM_NOUN = "video|clip|footage|image|photo|photograph|picture"
_MEDIUM_PHRASE = rf"(?:(?:short|brief|given|provided)\s+)?(?:(?:video|film)\s+)?(?:{_MEDIUM_NOUN}|frame)s?"
_VIEWER_SEES = r"(?:we|you|one|viewers?|the viewer)\s+(?:can\s+)?(?:see|sees|observe|observes|watch|watches)"
_MEDIUM_SHOWS = r"(?:shows?|showcases?|depicts?|displays?|features?|captures?|presents?|portrays?|contains?)"
_BOILERPLATE = re.compile(
    rf"""\s*(?:
      (?:sure|certainly|of\ course|okay|absolutely)\s*[,.!:]+\s*
    | here(?:\ is|\ are|['’]s)\s+[^:.]{{0,60}}:\s*
    | (?:caption|description|answer|response|assistant)\s*:\s*
    | (?:in|throughout)\s+(?:the|this)\s+{_MEDIUM_PHRASE}\s*,\s*(?:{_VIEWER_SEES}\s+|there\s+(?:is|are)\s+)?
    | (?:in|throughout)\s+(?:the|this)\s+{_MEDIUM_PHRASE}\s+(?:{_VIEWER_SEES}|there\s+(?:is|are))\s+
    | (?:the|this)\s+{_MEDIUM_PHRASE}\s+(?:{_MEDIUM_SHOWS}|(?:begins|starts|opens)\s+with|is\s+(?:about|of|showing))\b\s*
    | (?:an?\s+)?(?:{_MEDIUM_NOUN})(?:\s+(?:clip|footage))?\s+(?:of|showing|depicting)\b\s*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Only these exact phrases: "A flat clip shows" and "A black and white photo of" describe the style of the clip."""
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
"""Only at the start of a sentence: speech or text inside a clip may contain the same words."""


def normalize_text(text: str) -> str:
    """One line of text without special tokens and control characters, with single spaces, none before punctuation.

    Words are never changed; idempotent.
    """
    text = unicodedata.normalize("NFC", _SPECIAL_TOKENS.sub(" ", text))
    text = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf" and letter != "\ufffd")
    text = _SPACES.sub(" ", text).strip()
    text = _SPACE_AFTER_OPENING.sub(r"\1", _SPACE_BEFORE.sub(r"\1", text))
    text = _QUOTED.sub(r'"\1"', text)
    return _REPEATED_PUNCTUATION.sub(r"\1", text).lstrip(",.;:!? ").rstrip(" ,;:")


def sentence_case(text: str) -> str:
    """Capitalize the first letter of each sentence, for captioners with a lower-case vocabulary."""
    return _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def tokenize_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _WORD.findall(text.lower())


def strip_boilerplate(text: str) -> tuple[str, str]:
    """The caption without leading boilerplate, and that boilerplate.

    "The video shows a dog." gives ("A dog.", "The video shows"); the second is "" where there is none, or where less than
    `MIN_WORDS` words would be left.
    """
    start = 0
    for _ in range(MAX_LEADING_PHRASES):
        match = _BOILERPLATE.match(text, start)
        if not match:
            break
        start = match.end()
    rest = normalize_text(text[start:])
    if not start or len(tokenize_words(rest)) < MIN_WORDS:
        return text, ""
    return (rest[0].upper() + rest[1:] if text[:1].isupper() else rest), text[:start].strip(" ,;:")


def find_fault(text: str, *, ended: bool = True, kind: str = "descriptive") -> str | None:
    """The first of `FAULTS` that the text has; None where it has none.

    Args:
        ended: whether the captioner generated its end token; otherwise the text is truncated.
        kind: one of `KINDS`; a field may be one word.
    """
    words = tokenize_words(text)
    if len(words) < (1 if kind in FIELD_KINDS else MIN_WORDS):
        return "empty"
    if (match := _BOILERPLATE.match(text)) and len(tokenize_words(text[match.end() :])) < MIN_WORDS:
        return "boilerplate"
    if _REFUSAL.search(text):
        return "refusal"
    if is_repetitive(words):
        return "looping"
    if not ended:
        return "truncated"
    return None


def is_repetitive(words: Sequence[str]) -> bool:
    """Whether a phrase repeats more than `MAX_REPEATS` times in a row, or too few four-word shingles are distinct."""
    for length in range(1, MAX_LOOP_WORDS + 1):
        num_matches = 0
        for index in range(length, len(words)):
            num_matches = num_matches + 1 if words[index] == words[index - length] else 0
            if num_matches >= length * MAX_REPEATS:
                return True
    shingles = [tuple(words[index : index + 4]) for index in range(len(words) - 3)]
    return len(shingles) >= 8 and len(set(shingles)) / len(shingles) < MIN_DISTINCT_FRACTION
