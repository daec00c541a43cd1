"""User prompts in the style of the training captions: a model that learned from paragraphs does not follow four words.

    examples = read_examples(RunFolder("RUN"))                  # captions of the set that the shards were made from
    (one,) = expand(["a red circle over the sea"], examples, "embedded")
    one.text         "A flat clip shows a small plain red circle that moves left. ... over the sea. No text is shown."

An expander may add what the prompt leaves open, never change what it says. `embedded` needs no download: it takes words
and structure from the captions nearest to the prompt. `transformers:ID` and `http://HOST/v1#MODEL` ask a language model,
with captions of the set as examples; its answer is held against the prompt, and where it is empty, a loop, too long, or has
lost or turned what was asked for, the embedded one takes its place, and the note says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recaption.captions.text import fault_in, words_in

MAX_LENGTH_RATIO = 1.5
"""Against the longest caption: a longer answer is no caption of this set."""


MIN_KEPT_SHARE = 0.6
"""Of the prompt's content words, those that an answer must still have: it may say "strolls" for "walks", not forget half."""


def _sets(*words: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(one.split()) for one in words)


(STOP_WORDS,) = _sets(
    "a an the and or of in on at to from with by for as is are was were be been it its this that these those there here "
    "his her their he she they some any all into onto over under near next while which who whose then so very"
)


EXCLUSIVE = (
    _sets(
        *("red crimson scarlet", "orange", "yellow golden", "green", "blue azure navy", "purple violet", "pink"),
        *("white", "black", "brown", "gray grey"),
    ),
    _sets("day daytime daylight noon sunny sunlit", "night nighttime midnight dark moonlit"),
    _sets("day daytime noon", "dusk dawn sunset sunrise", "night nighttime midnight"),
    _sets("indoor indoors inside", "outdoor outdoors outside"),
    _sets(
        "sunny sunshine",
        "rainy rain raining",
        "snowy snow snowing",
        "foggy fog misty",
        "cloudy",
        "clear",
        "stormy storm",
    ),
    _sets("flat", "outline", "pixelated", "noisy", "sepia", "black-and-white monochrome", "photo", "cartoon animated"),
    _sets("left leftward leftwards", "right rightward rightwards"),
    _sets("up upward upwards", "down downward downwards"),
    _sets("still static fixed stationary motionless", "pans panning zooms zooming moves moving"),
    _sets("one single lone", "two pair", "three", "many several"),
    _sets("man", "men"),
    _sets("woman", "women"),
    _sets("small tiny little", "large big huge"),
    _sets("slowly", "quickly fast"),
)
"""Words of one row speak of one thing: a text that has one where the prompt has another turns what was asked for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One caption of the set, and what a user might have typed for it."""

    prompt: str
    caption: str


@dataclass(frozen=True)
class Style:
    """What captions of a set are like."""

    captions: tuple[str, ...]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Words of each caption, sorted."""
        return np.sort([len(words_in(caption)) for caption in self.captions])

    @cached_property
    def ends_with_stop(self) -> bool:
        return sum(caption.endswith((".", "!")) for caption in self.captions) * 2 > len(self.captions)

    @cached_property
    def starts_upper(self) -> bool:
        return sum(caption[:1].isupper() for caption in self.captions) * 2 > len(self.captions)

    @cached_property
    def rarity(self) -> dict[str, float]:
        """Word -> the log of how few captions have it."""
        counts: dict[str, int] = {}
        for caption in self.captions:
            for word in set(words_in(caption)):
                counts[word] = counts.get(word, 0) + 1
        return {word: math.log(1 + len(self.captions) / count) for word, count in counts.items()}

    def nearest(self, prompt: str, count: int) -> list[int]:
        """Rows of the captions that share the most with a prompt, rare words counting more; none that share nothing."""
        wanted = content_words(prompt)
        scores = []
        for row, caption in enumerate(self.captions):
            common = sum(self.rarity[word] for word in wanted & content_words(caption))
            if common > 0:
                scores.append((-common, len(caption), caption, row))
        return [row for *_, row in sorted(scores)[:count]]


def why_unusable(prompt: str, text: str, style: Style) -> str:
    """Why `text` is no expansion of `prompt`; "" where it is one."""
    words = words_in(text)
    fault = fault_in(text)
    if fault:
        return fault
    if len(words) > MAX_LENGTH_RATIO * max(style.lengths[-1], len(words_in(prompt))):
        return f"too long ({len(words)} words, captions have at most {style.lengths[-1]})"
    asked = content_words(prompt)
    stems = {_stem(word) for word in words}
    lost = sorted(word for word in asked if _stem(word) not in stems)
    if asked and 1 - len(lost) / len(asked) < MIN_KEPT_SHARE:
        return f"it lost {', '.join(lost)}"
    if turned := contradiction(prompt, text):
        return f"it says {turned[1]} where the prompt says {turned[0]}"
    return ""


def contradiction(prompt: str, text: str) -> tuple[str, str] | None:
    """(word of the prompt, word of the text that excludes it), by `EXCLUSIVE`; None where there is none.

    A text that also has the prompt's own word does not turn it: "a red ball on green grass" has two colours.
    """
    asked, said = set(words_in(prompt)), set(words_in(text))
    for row in EXCLUSIVE:
        for one in row:
            if not asked & one or said & one:
                continue
            for other in row:
                if other is not one and said & other and not asked & other:
                    return min(asked & one), min(said & other)
    return None


def content_words(text: str) -> frozenset[str]:
    """Words that say something."""
    return frozenset(word for word in words_in(text) if word not in STOP_WORDS)


def _stem(word: str) -> str:
    """Enough of a word to find it again with another ending."""
    return word[: max(4, len(word) - 3)]
