"""Normalizes caption text and finds faults in it, from the text alone.

normalize_text("a red  circle moves left .<|im_end|>")       "a red circle moves left."
strip_boilerplate("The video shows a red circle.")             ("A red circle.", "The video shows")
find_fault("a a a a a a")                                        "looping"
find_fault("a red circle moves left.", ended=True)               None

In any language: what a word is says `words`, what models wrap around a caption `markup`, what they say before and after it
`boilerplate`, and what they say in place of it `refusals`.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import regex

from recaption.captions.boilerplate import closing, leading
from recaption.captions.markup import LEFT_OVER, MAX_CHARACTERS, is_list, is_unfinished_reasoning, unwrap
from recaption.captions.refusals import is_refusal
from recaption.captions.words import is_grapheme, tokenize_words
from recaption.records import CaptionFields

FIELD_KINDS = tuple(field.name for field in dataclasses.fields(CaptionFields))
"""Caption kinds that describe one aspect of a clip in a few words."""
CAPTION_KINDS = ("descriptive", "short", *FIELD_KINDS)
"""The kinds of caption that a captioner may write for a clip."""
FAULTS = (
    *("no_answer", "rejected", "reasoning", "empty", "refusal", "boilerplate", "markup", "list", "glitch"),
    *("looping", "truncated", "over_long", "low_score", "repeated"),
)
"""Why a caption is bad, in the order of the checks. `no_answer`: the endpoint returned no text, see `PASSING_FAULTS`;
`rejected`: it refuses this request (status 400, 413, 422), and would again. From `reasoning` (thoughts without a caption)
to `truncated` they follow from the text and how its generation ended: `markup` is a structured answer without a caption in
it, `list` one text per frame or several suggestions, `glitch` a token that belongs to no language. `over_long` needs the
text encoder of the training, `low_score` the pixels, and `repeated` all captions of the set."""
PASSING_FAULTS = ("no_answer",)
"""Faults that say nothing about the clip: the next run of the same command asks again for these captions, and until then
they are open, neither good nor bad."""
MIN_WORDS = 2
"""A caption of one word names an object but describes nothing; a field may be one word."""
MAX_REPEATS = 3
"""More consecutive repeats of a phrase than this are a loop ("a 2 2 2 2", "on the on the on the on the")."""
MAX_GRAPHEME_REPEATS = 6
"""The same for one or two graphemes of a script without spaces: "哈哈哈哈" is laughter."""
MAX_LOOP_WORDS = 6
"""Longest phrase, in words, whose consecutive repeats are counted."""
MIN_DISTINCT_FRACTION = 0.5
"""Fraction of four-word shingles that must be distinct: a sentence repeated three times is below it."""
_SPACES = re.compile(r"\s+")
_SPACE_BEFORE = re.compile(r"\s+([,.;:!?%)\]])")
_SPACE_AFTER_OPENING = re.compile(r"([(\[])\s+")
_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')
_REPEATED_PUNCTUATION = re.compile(r"([,;:])\1+")
_JOINER = regex.compile(r"(?<=[\p{L}\p{M}\p{Emoji}\uFE0F])[\u200C\u200D](?=[\p{L}\p{Emoji}])")
"""Zero-width joiners between letters (Persian, Hindi) and in emoji: they belong to the spelling."""
_SENTENCE_START = re.compile(r"(^|[.!?]\s+)([a-z])")
MAX_LEADING_PHRASES = 6
""""Sure! Here is a caption: In this video, we see a dog" has three."""
_GLITCH = re.compile(
    r"(?<![\w\"'“/.@#])[a-z]{3,}(?:[A-Z][a-z]{2,})+(?![\w\"'”])|\ufffd|(?:SolidGoldMagikarp|PostalCodesNL|\$\{|\bNSString\b)"
)
"""A token of source code that a model emits in place of a word ("addCriterion"), or bytes that are no character."""
_ON_A_CAPTION = r"(?:describe|caption|look|analy[sz]e|provide|create|write|generate|produce|output)"
_THINKING_ALOUD = re.compile(
    rf"""\A\W*(?:(?:okay|ok|alright|hmm+|so|well|wait|first|now|got\ it|let['’]s\ see)\b[,.!]*\s+)*(?:
      the\ user\ (?:wants|is\ asking|asks|has|provided|needs|sent|uploaded|requested)
    | let\ me\ (?:see|look|think|analy[sz]e|start|check|break|examine|try)
    | let['’]s\ (?:see|look|analy[sz]e|think|break|examine|start)
    | i\ (?:need|should|have|must)\ to\ {_ON_A_CAPTION} | i\ should\  | we\ (?:need|have|should)(?:\ to)?\ {_ON_A_CAPTION}
    | i['’]m\ (?:going\ to|asked|supposed) | the\ task\ is
    | (?:用户|使用者)(?:想|要求|希望|需要|让|提供|发) | (?:好的，)?让我(?:看|想|来|先|仔细|分析) | 首先，?我(?:需要|要|得)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Thoughts without tags around them, in place of a caption."""


def reason_of(fault: str | None) -> str | None:
    """`Caption.reason` of a caption with this fault: `bad_caption`, or the fault itself where it is passing."""
    return (fault if fault in PASSING_FAULTS else "bad_caption") if fault else None


def normalize_text(text: str) -> str:
    """One line of text without markup, special tokens and control characters, with single spaces, none before punctuation.

    Words are never changed; idempotent. Reasoning before a caption is removed (`markup.unwrap`); reasoning without a caption
    stays, and `find_fault` finds it.
    """
    for _ in range(20):  # what stood inside of markup may be markup
        normalized = _normalize_once(text)
        if normalized == text:
            break
        text = normalized
    return text


def _normalize_once(text: str) -> str:
    text = unicodedata.normalize("NFC", unwrap(text))
    text = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    if not text.isascii():
        kept = {found.start() for found in _JOINER.finditer(text)}
        text = "".join(c for i, c in enumerate(text) if unicodedata.category(c) not in ("Cf", "Cs") or i in kept)
        text = text.strip("\ufffd \u200c\u200d")
    text = _SPACES.sub(" ", text).strip()
    text = _SPACE_AFTER_OPENING.sub(r"\1", _SPACE_BEFORE.sub(r"\1", text))
    text = _QUOTED.sub(r'"\1"', text)
    return _REPEATED_PUNCTUATION.sub(r"\1", text).lstrip(",.;:!? ，。；：！？、").rstrip(" ,;:，；：、")


def sentence_case(text: str) -> str:
    """Capitalize the first letter of each sentence, for captioners with a lower-case vocabulary."""
    return _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def strip_boilerplate(text: str) -> tuple[str, str]:
    """The caption without leading and closing boilerplate, and that boilerplate.

    "The video shows a dog." gives ("A dog.", "The video shows"); the second is "" where there is none, or where less than
    `MIN_WORDS` words would be left. Refusals and lists stay as they are.
    """
    start = _caption_start(text)
    end_phrases = closing().search(text, start)
    if not start and not end_phrases:
        return text, ""
    end = end_phrases.start() if end_phrases else len(text)
    rest = normalize_text(text[start:end])
    if len(tokenize_words(rest)) < MIN_WORDS or is_refusal(text) or is_list(text):
        return text, ""
    phrases = [text[:start].strip(" ,;:，：、-–—"), text[end:].strip()]
    is_upper = bool(start) and text[:1].isupper()
    return (rest[0].upper() + rest[1:] if is_upper else rest), " ... ".join(filter(None, phrases))


def _caption_start(text: str) -> int:
    """Index behind the leading phrases."""
    start = 0
    for _ in range(MAX_LEADING_PHRASES):
        match = leading().match(text, start)
        if not match or match.end() == start:
            break
        start = match.end()
    return start


def find_fault(text: str, *, ended: bool = True, kind: str = "descriptive") -> str | None:
    """The first of `FAULTS` that the text has; None where it has none.

    Args:
        ended: whether the captioner generated its end token; otherwise the text is truncated.
        kind: one of `CAPTION_KINDS`; a field may be one word.
    """
    if is_unfinished_reasoning(text) or _THINKING_ALOUD.match(text):
        return "reasoning"
    if len(text) > MAX_CHARACTERS:
        return "over_long"
    words = tokenize_words(text)
    if len(words) < (1 if kind in FIELD_KINDS else MIN_WORDS):
        return "empty"
    if is_refusal(text):
        return "refusal"
    start = _caption_start(f"{text}: ")
    if start and len(tokenize_words(text[start:])) < MIN_WORDS:
        return "boilerplate"
    if LEFT_OVER.search(text):
        return "markup"
    if is_list(text):
        return "list"
    if _GLITCH.search(text):
        return "glitch"
    if is_repetitive(words):
        return "looping"
    if not ended:
        return "truncated"
    return None


def is_repetitive(words: Sequence[str]) -> bool:
    """Whether a phrase repeats more than `MAX_REPEATS` times in a row, or too few four-word shingles are distinct."""
    for length in range(1, MAX_LOOP_WORDS + 1):
        num_matches = 0
        is_short = length <= 2
        for index in range(length, len(words)):
            num_matches = num_matches + 1 if words[index] == words[index - length] else 0
            limit = MAX_GRAPHEME_REPEATS if is_short and is_grapheme(words[index]) else MAX_REPEATS
            if num_matches >= length * limit:
                return True
    shingles = [tuple(words[index : index + 4]) for index in range(len(words) - 3)]
    return len(shingles) >= 8 and len(set(shingles)) / len(shingles) < MIN_DISTINCT_FRACTION
