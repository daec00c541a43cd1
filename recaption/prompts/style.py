"""The style of the training captions, and the checks that an expanded prompt keeps the meaning of the original.

    style = Style(tuple(example.caption for example in read_examples(RunFolder("RUN"))))
    rejection_reason("a red ball", "A blue ball rolls.", style)              # "it says blue where the prompt says red"

A model trained on paragraphs does not follow prompts of four words, so prompts are expanded (prompts/expand.py). An expander
may add details, never change what the prompt says: its text is rejected where it is empty, a loop, too long, drops words of
the prompt or contradicts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recaption.captions.text import find_fault, tokenize_words

END_MARKS = (".", "!", "。", "！", "।", "۔", "።")
"""What the sentences of a caption end with, in the scripts that have a mark of their own."""
MAX_LENGTH_RATIO = 1.5
"""Most words of an expanded prompt, relative to the longest caption."""
MIN_KEPT_WORD_FRACTION = 0.6
"""Fraction of the prompt's content words that must be kept: "strolls" may replace "walks", half may not be dropped."""


def _word_sets(*words: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(group.split()) for group in words)


(STOP_WORDS,) = _word_sets(
    "a an the and or of in on at to from with by for as is are was were be been it its this that these those there here "
    "his her their he she they some any all into onto over under near next while which who whose then so very"
)
ANTONYM_GROUPS = (
    _word_sets(
        *("red crimson scarlet", "orange", "yellow golden", "green", "blue azure navy", "purple violet", "pink"),
        *("white", "black", "brown", "gray grey"),
    ),
    _word_sets("day daytime daylight noon sunny sunlit", "night nighttime midnight dark moonlit"),
    _word_sets("day daytime noon", "dusk dawn sunset sunrise", "night nighttime midnight"),
    _word_sets("indoor indoors inside", "outdoor outdoors outside"),
    _word_sets(
        "sunny sunshine",
        "rainy rain raining",
        "snowy snow snowing",
        "foggy fog misty",
        "cloudy",
        "clear",
        "stormy storm",
    ),
    _word_sets(
        "flat", "outline", "pixelated", "noisy", "sepia", "black-and-white monochrome", "photo", "cartoon animated"
    ),
    _word_sets("left leftward leftwards", "right rightward rightwards"),
    _word_sets("up upward upwards", "down downward downwards"),
    _word_sets("still static fixed stationary motionless", "pans panning zooms zooming moves moving"),
    _word_sets("one single lone", "two pair", "three", "many several"),
    _word_sets("man", "men"),
    _word_sets("woman", "women"),
    _word_sets("small tiny little", "large big huge"),
    _word_sets("slowly", "quickly fast"),
)
"""Groups of mutually exclusive sets of synonyms: text with a word of one set contradicts a prompt with one of another."""


@dataclass(frozen=True, slots=True)
class Example:
    """A caption of the set, and a short prompt that a user might have typed for it."""

    prompt: str
    caption: str


@dataclass(frozen=True)
class Style:
    """Statistics of the captions of a set: lengths, punctuation, inverse document frequency."""

    captions: tuple[str, ...]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of words of each caption, sorted."""
        return np.sort([len(tokenize_words(caption)) for caption in self.captions])

    @cached_property
    def ends_with_stop(self) -> bool:
        return sum(caption.endswith(END_MARKS) for caption in self.captions) * 2 > len(self.captions)

    @cached_property
    def end_mark(self) -> str:
        """The mark that most captions end with; "." where none does."""
        counts = {mark: sum(caption.endswith(mark) for caption in self.captions) for mark in END_MARKS}
        return max(END_MARKS, key=lambda mark: (counts[mark], mark == "."))

    @cached_property
    def starts_upper(self) -> bool:
        return sum(caption[:1].isupper() for caption in self.captions) * 2 > len(self.captions)

    @cached_property
    def idf(self) -> dict[str, float]:
        """Word -> log(1 + captions / captions with the word)."""
        counts: dict[str, int] = {}
        for caption in self.captions:
            for word in set(tokenize_words(caption)):
                counts[word] = counts.get(word, 0) + 1
        return {word: math.log(1 + len(self.captions) / count) for word, count in counts.items()}

    def nearest(self, prompt: str, count: int) -> list[int]:
        """Indices of the captions with the highest idf-weighted word overlap with a prompt; none without overlap."""
        prompt_words = content_words(prompt)
        scores = []
        for index, caption in enumerate(self.captions):
            overlap = sum(self.idf[word] for word in prompt_words & content_words(caption))
            if overlap > 0:
                scores.append((-overlap, len(caption), caption, index))
        return [index for *_, index in sorted(scores)[:count]]


def rejection_reason(prompt: str, text: str, style: Style) -> str:
    """Why `text` is not a valid expansion of `prompt`; "" where it is."""
    words = tokenize_words(text)
    fault = find_fault(text)
    if fault:
        return fault
    if len(words) > MAX_LENGTH_RATIO * max(style.lengths[-1], len(tokenize_words(prompt))):
        return f"too long ({len(words)} words, captions have at most {style.lengths[-1]})"
    prompt_words = content_words(prompt)
    stems = {_stem(word) for word in words}
    lost = sorted(word for word in prompt_words if _stem(word) not in stems)
    if prompt_words and 1 - len(lost) / len(prompt_words) < MIN_KEPT_WORD_FRACTION:
        return f"it lost {', '.join(lost)}"
    if contradiction := find_contradiction(prompt, text):
        return f"it says {contradiction[1]} where the prompt says {contradiction[0]}"
    return ""


def find_contradiction(prompt: str, text: str) -> tuple[str, str] | None:
    """A word of the prompt and a word of the text that contradicts it, by `ANTONYM_GROUPS`; None where there is none.

    A text that also contains the prompt's word does not contradict it: "a red ball on green grass" has two colours.
    """
    prompt_words, text_words = set(tokenize_words(prompt)), set(tokenize_words(text))
    for group in ANTONYM_GROUPS:
        for words in group:
            if not prompt_words & words or text_words & words:
                continue
            for antonyms in group:
                if antonyms is not words and text_words & antonyms and not prompt_words & antonyms:
                    return min(prompt_words & words), min(text_words & antonyms)
    return None


def content_words(text: str) -> frozenset[str]:
    """Words that are not stop words."""
    return frozenset(word for word in tokenize_words(text) if word not in STOP_WORDS)


def _stem(word: str) -> str:
    """A prefix that survives another inflection."""
    return word[: max(4, len(word) - 3)]
