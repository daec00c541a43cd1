"""The `embedded` expander: fills a prompt from similar captions of the training set, without a language model.

Two methods. Captions of rendered scenes name one value per attribute: those that the prompt names are kept, the others
are taken from the nearest caption, and a new caption is written from all of them. For all other captions, sentences are
borrowed: the prompt comes first, unchanged, then sentences of the nearest caption that mention no object the prompt does
not have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from recaption.captions.text import tokenize_words
from recaption.prompts.style import STOP_WORDS, Example, Style, content_words, find_contradiction, rejection_reason
from recaption.scenes.captions import ATTRIBUTE_VALUES, SceneAttributes, attribute_in, long_caption

NUM_NEAREST = 8
"""Nearest captions that sentences may be borrowed from."""
MIN_SCENE_ATTRIBUTES = 7
"""A caption that names at least this many attributes of `ATTRIBUTE_VALUES` is that of a rendered scene."""
MIN_SCENE_FRACTION = 0.8
"""Captions of rendered scenes among the examples, from which on the template is used."""
OPTIONAL_ATTRIBUTES = {"size": "", "text": ""}
MEDIUM_WORDS = frozenset(["video", "clip", "footage"])
"""Ignored when prompt and caption are compared: true of every caption."""
PERSONAL_PRONOUNS = frozenset(["he", "she", "his", "her", "him", "hers", "himself", "herself", "they", "them", "their"])
"""Sentences with these refer to a person whom the prompt may not have."""
_SENTENCES = re.compile(r"(?<=[.!?।۔።])\s+|(?<=[。！？])\s*(?=.)")
_END_MARKS = ".!?。！？।۔።"


class RetrievalExpander:
    """Implements `expand.Expander` by retrieval of similar captions."""

    name = "embedded"

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        is_scenes = _are_scene_captions(style)
        texts = []
        for prompt in prompts:
            text = _fill_template(prompt, style) if is_scenes else ""
            texts.append(text or _borrow_sentences(prompt, style))
        return texts


def _are_scene_captions(style: Style) -> bool:
    captions = style.captions[:200]
    num_named = [sum(bool(attribute_in(caption, key)) for key in ATTRIBUTE_VALUES) for caption in captions]
    return sum(count >= MIN_SCENE_ATTRIBUTES for count in num_named) >= MIN_SCENE_FRACTION * len(captions)


def _fill_template(prompt: str, style: Style) -> str:
    """A scene caption with every attribute of the prompt; "" where the prompt has words that scenes cannot express."""
    requested = {key: attribute_in(prompt, key) for key in ATTRIBUTE_VALUES}
    if not any(requested.values()):
        return ""
    look = _nearest_attributes(requested, style) | {key: value for key, value in requested.items() if value}
    if not requested["size"] and (look["action"] in ("grows", "shrinks") or look["camera"].startswith("zooms")):
        look["size"] = ""
    if any(not value for key, value in look.items() if key not in OPTIONAL_ATTRIBUTES):
        return ""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    text = long_caption(SceneAttributes(**look), np.random.default_rng(seed))
    keeps_requested = all(attribute_in(text, key) == value for key, value in requested.items() if value)
    keeps_words = content_words(prompt) - MEDIUM_WORDS <= set(tokenize_words(text))
    return text if keeps_requested and keeps_words and not rejection_reason(prompt, text, style) else ""


def _nearest_attributes(requested: dict[str, str], style: Style) -> dict[str, str]:
    """Attributes of the caption with the most requested values; ties go to the alphabetically first."""
    best: tuple[int, str, dict[str, str]] | None = None
    for caption in style.captions:
        look = {key: attribute_in(caption, key) for key in ATTRIBUTE_VALUES}
        rank = -sum(bool(value) and look[key] == value for key, value in requested.items()), caption
        missing = sum(not value for key, value in look.items() if key not in OPTIONAL_ATTRIBUTES)
        if not missing and (best is None or rank < best[:2]):
            best = (*rank, look)
    return dict(best[2]) if best else dict.fromkeys(ATTRIBUTE_VALUES, "")


def _borrow_sentences(prompt: str, style: Style) -> str:
    """The prompt as a sentence, then fitting sentences of one similar caption, up to the median caption length.

    Of one caption only: two would describe two places.
    """
    sentences = [_as_sentence(prompt, style)]
    length = len(tokenize_words(prompt))
    median_length = float(np.median(style.lengths))
    for index in style.nearest(prompt, NUM_NEAREST):
        first, *rest = _SENTENCES.split(style.captions[index])
        foreign_words = content_words(first) - content_words(prompt)
        for sentence in rest:
            words = tokenize_words(sentence)
            if length + len(words) > median_length or sentence in sentences:
                continue
            if foreign_words & set(words) or PERSONAL_PRONOUNS & set(words) or find_contradiction(prompt, sentence):
                continue
            sentences.append(sentence)
            length += len(words)
        if len(sentences) > 1:
            break
    return " ".join(sentences)


def _as_sentence(prompt: str, style: Style) -> str:
    """The prompt with the article, capital letter and full stop that most captions have."""
    text = prompt.strip()
    first = tokenize_words(text)[0]
    num_articles = sum(tokenize_words(caption)[:1] in (["a"], ["an"]) for caption in style.captions)
    needs_article = (
        first not in STOP_WORDS and not first.endswith("s") and not text[0].isupper() and not text[0].isdigit()
    )
    if needs_article and num_articles * 2 > len(style.captions):
        text = f"{'an' if first[0] in 'aeiou' else 'a'} {text}"
    if style.starts_upper:
        text = text[0].upper() + text[1:]
    if style.ends_with_stop and text[-1] not in _END_MARKS:
        text += style.end_mark
    return text
