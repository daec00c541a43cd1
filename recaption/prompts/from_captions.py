"""Prompts expanded without a language model: what the prompt leaves open is taken from the captions nearest to it.

Two ways. Captions of rendered scenes name one value per field: the prompt's fields are read, the others come from the
nearest caption, and a caption is written from all of them. Of any other captions whole sentences are borrowed: the prompt
comes first, in its own words, then sentences of its nearest captions that speak of nothing that the prompt does not have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from recaption.captions.text import words_in
from recaption.prompts.style import STOP_WORDS, Example, Style, content_words, contradiction, why_unusable
from recaption.scenes.captions import VOCABULARY, Look, long_caption, word_in

NUM_NEAREST = 8
"""Captions that sentences are looked for in."""


SCENE_KEYS = 7
"""A caption that names as many keys of the scenes' vocabulary is one of a scene."""


SCENE_SHARE = 0.8


NEUTRAL = {"size": "", "text": ""}


MEDIUM = frozenset(["video", "clip", "footage"])
"""Every caption is about one; not every caption says so."""


PERSONS = frozenset(["he", "she", "his", "her", "him", "hers", "himself", "herself", "they", "them", "their"])
"""Sentences about somebody whom the prompt may not have."""


_SENTENCES = re.compile(r"(?<=[.!?])\s+")


_ENDS = ".!?"


class Embedded:
    """Implements `prompts.Expander`."""

    name = "embedded"

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        is_scenes = _are_scenes(style)
        texts = []
        for prompt in prompts:
            text = _filled(prompt, style) if is_scenes else ""
            texts.append(text or _borrowed(prompt, style))
        return texts


def _are_scenes(style: Style) -> bool:
    some = style.captions[:200]
    named = [sum(bool(word_in(caption, key)) for key in VOCABULARY) for caption in some]
    return sum(count >= SCENE_KEYS for count in named) >= SCENE_SHARE * len(some)


def _filled(prompt: str, style: Style) -> str:
    """A scene's caption with every field that the prompt names; "" where the prompt asks for more than scenes have."""
    asked = {key: word_in(prompt, key) for key in VOCABULARY}
    if not any(asked.values()):
        return ""
    look = _nearest_look(asked, style) | {key: value for key, value in asked.items() if value}
    if not asked["size"] and (look["action"] in ("grows", "shrinks") or look["camera"].startswith("zooms")):
        look["size"] = ""
    if any(not value for key, value in look.items() if key not in NEUTRAL):
        return ""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    text = long_caption(Look(**look), np.random.default_rng(seed))
    kept = all(word_in(text, key) == value for key, value in asked.items() if value)
    known = content_words(prompt) - MEDIUM <= set(words_in(text))
    return text if kept and known and not why_unusable(prompt, text, style) else ""


def _nearest_look(asked: dict[str, str], style: Style) -> dict[str, str]:
    """The values of the caption that names the most of what is asked for, the first of the alphabet among equals."""
    best: tuple[int, str, dict[str, str]] | None = None
    for caption in style.captions:
        look = {key: word_in(caption, key) for key in VOCABULARY}
        rank = -sum(bool(value) and look[key] == value for key, value in asked.items()), caption
        missing = sum(not value for key, value in look.items() if key not in NEUTRAL)
        if not missing and (best is None or rank < best[:2]):
            best = (*rank, look)
    return dict(best[2]) if best else dict.fromkeys(VOCABULARY, "")


def _borrowed(prompt: str, style: Style) -> str:
    """The prompt as a sentence, then what fits of the nearest caption, to the length that captions have.

    Of one caption only: two would speak of two places.
    """
    sentences = [_as_sentence(prompt, style)]
    length = len(words_in(prompt))
    usual = float(np.median(style.lengths))
    for row in style.nearest(prompt, NUM_NEAREST):
        first, *others = _SENTENCES.split(style.captions[row])
        strange = content_words(first) - content_words(prompt)
        for sentence in others:
            words = words_in(sentence)
            if length + len(words) > usual or sentence in sentences:
                continue
            if strange & set(words) or PERSONS & set(words) or contradiction(prompt, sentence):
                continue
            sentences.append(sentence)
            length += len(words)
        if len(sentences) > 1:
            break
    return " ".join(sentences)


def _as_sentence(prompt: str, style: Style) -> str:
    """The prompt's own words, with the article, capital and full stop that the captions have."""
    text = prompt.strip()
    first = words_in(text)[0]
    opens = sum(words_in(caption)[:1] in (["a"], ["an"]) for caption in style.captions)
    is_plain = first not in STOP_WORDS and not first.endswith("s") and not text[0].isupper() and not text[0].isdigit()
    if is_plain and opens * 2 > len(style.captions):
        text = f"{'an' if first[0] in 'aeiou' else 'a'} {text}"
    if style.starts_upper:
        text = text[0].upper() + text[1:]
    if style.ends_with_stop and text[-1] not in _ENDS:
        text += "."
    return text
