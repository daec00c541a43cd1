"""Words of a text in any script.

tokenize_words("A dog's black ball, 2 cats.")       ["a", "dog's", "black", "ball", "2", "cats"]
tokenize_words("一只狗跑。")                           ["一", "只", "狗", "跑"]
tokenize_words("कुत्ता दौड़ता है")                        ["कुत्ता", "दौड़ता", "है"]

Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and a few more are written without spaces between words. There each
grapheme (a letter with its marks) counts as a word, in Tibetan each syllable: close enough for loops, repeated texts,
n-grams and "is there anything at all", without a dictionary per language.
"""

from __future__ import annotations

import re
from functools import cache

import regex

SCRIPTS_WITHOUT_SPACES = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar"),
    *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"),
)
"""Unicode names of the scripts whose graphemes count as words."""
UNSPACED = "[" + "".join(rf"\p{{{script}}}" for script in SCRIPTS_WITHOUT_SPACES) + "ー々〆〇]"
"""A character of such a script (a set of the `regex` module, version 1)."""
_ASCII_WORD = re.compile(r"\w+(?:['-]\w+)*")
"""Five times as fast as the pattern for all scripts, and the same on ASCII."""
_WORD_CHARACTER = r"[\w\p{L}\p{M}\p{N}]"


@cache
def _word_pattern() -> regex.Pattern[str]:
    grapheme = rf"(?=[{UNSPACED}&&[\p{{L}}\p{{N}}]])\X"
    syllable = r"[\p{Tibetan}&&[\p{L}\p{M}\p{N}]]+"
    spaced = rf"[{_WORD_CHARACTER}--[{UNSPACED}\p{{Tibetan}}]]"
    return regex.compile(rf"{grapheme}|{syllable}|{spaced}+(?:['’-]{spaced}+)*", regex.VERSION1)


@cache
def _unspaced_pattern() -> regex.Pattern[str]:
    return regex.compile(rf"(?=[{UNSPACED}&&[\p{{L}}\p{{N}}]])\X", regex.VERSION1)


def tokenize_words(text: str) -> list[str]:
    """Lower-case words without punctuation; graphemes in the scripts that have no spaces between words."""
    text = text.lower()
    return _ASCII_WORD.findall(text) if text.isascii() else _word_pattern().findall(text)


def separate_graphemes(text: str) -> str:
    """The text with spaces around what `tokenize_words` counts as a word by itself: for tokenizers that split at spaces."""
    return text if text.isascii() else _unspaced_pattern().sub(r" \g<0> ", text)


def count_words(text: str) -> int:
    """Words as people count them: parts between spaces, punctuation and all; graphemes where there are no spaces."""
    return len(separate_graphemes(text).split())


def first_words(text: str, count: int) -> str:
    """The beginning of a text up to so many words, with single spaces, and none where the script has none."""
    words = separate_graphemes(text).split()[:count]
    return regex.sub(rf"(?<={UNSPACED}\p{{M}}*) (?={UNSPACED})", "", " ".join(words), flags=regex.VERSION1)


def is_grapheme(word: str) -> bool:
    """Whether a word of `tokenize_words` is a grapheme of a script without spaces."""
    return not word.isascii() and bool(_unspaced_pattern().fullmatch(word))
