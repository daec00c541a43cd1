"""How good captions are against references: CIDEr-D, BLEU, ROUGE-L, retrieval. No Java, no torch.

    caption_scores(["a dog runs"], [["a dog is running", "the dog runs fast"]])
    {"cider_d": ..., "bleu_1": ..., ..., "bleu_4": ..., "rouge_l": ...}
    recall_at(cosine_AB, (1, 5, 10))      # row i belongs to column i

The numbers are those of pycocoevalcap on its own scale (CIDEr-D about 1.0 where papers write 100). Candidates and
references are raw text; `tokenise` follows the Penn Treebank as that package's Java tokeniser does: lower case,
punctuation gone, "don't" is "do n't".
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from recaption.errors import UsageError

MAX_NGRAM = 4


CIDER_SIGMA = 6.0
"""Of the Gaussian penalty on the difference of lengths that makes CIDEr into CIDEr-D (arXiv 1411.5726)."""


CIDER_SCALE = 10.0


ROUGE_BETA = 1.2
"""Weight of recall against precision, as MS-COCO has it."""


_TINY, _SMALL = 1e-15, 1e-9
"""Keep BLEU's quotients defined; part of the reference implementation's numbers."""


Ngram = tuple[str, ...]


_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))(?!\w)")


_JOINED = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}


_TOKEN = re.compile(
    r"n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w)"  # what a contraction leaves
    r"|\d+(?:[.,:/]\d+)*(?![\w-])"  # 1,000 3.5 10:30 1/2
    r"|(?:[a-z]\.){2,}|(?:mr|mrs|ms|dr|st|jr|sr|vs|prof)\.(?=\s)"  # u.s. mr.
    r"|[@]?\w+(?:[-'/&.@]\w+)*"  # t-shirt o'clock
    r"|[()\[\]{}]|[$%#&*+=@<>^~|\\/_]"
)


_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def tokenise(text: str) -> list[str]:
    """Lower-case Penn Treebank words without punctuation."""
    text = text.lower().replace("’", "'").replace("‘", "'")
    text = _CONTRACTION.sub(r" \1", text)
    words = [_BRACKETS.get(word, word) for word in _TOKEN.findall(text)]
    return [part for word in words for part in _JOINED.get(word, word).split(" ")]


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`cider_d`, `bleu_1` ... `bleu_4` and `rouge_l` of one caption per clip against one or more references each.

    Raises:
        UsageError: no captions, or a clip without reference.
    """
    return {
        "cider_d": cider_d(candidates, references),
        **{f"bleu_{n}": score for n, score in enumerate(bleu(candidates, references), start=1)},
        "rouge_l": rouge_l(candidates, references),
    }


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D, mean over clips: agreement with the references, n-grams weighted by how rare they are among all of them.

    The weights come from these references: figures of sets of other sizes or contents cannot be compared, and of one
    clip alone every weight is 0.
    """
    texts, referred = _checked(candidates, references)
    appearances: Counter[Ngram] = Counter()
    counted = [[_ngrams(words) for words in several] for several in referred]
    for several in counted:
        appearances.update({ngram for counts in several for ngram in counts})
    idf: dict[Ngram, float] = defaultdict(lambda: math.log(len(texts)))
    idf |= {ngram: math.log(len(texts) / clips) for ngram, clips in appearances.items()}
    total = 0.0
    for words, several in zip(texts, counted, strict=True):
        own = _Weighted(_ngrams(words), idf)
        total += sum(own.similarity(_Weighted(counts, idf)) for counts in several) / len(several)
    return CIDER_SCALE * total / len(texts)


class _Weighted:
    """tf-idf vectors of one text, one per n-gram length."""

    def __init__(self, counts: Mapping[Ngram, int], idf: Mapping[Ngram, float]) -> None:
        self.weights: list[dict[Ngram, float]] = [{} for _ in range(MAX_NGRAM)]
        for ngram, count in counts.items():
            self.weights[len(ngram) - 1][ngram] = count * idf[ngram]
        self.norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in self.weights]
        # the reference implementation measures length in pairs of words
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def similarity(self, reference: _Weighted) -> float:
        """Mean over n of the cosine, in which repeating a word beyond the reference earns nothing."""
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * CIDER_SIGMA**2))
        cosines = 0.0
        for mine, theirs, norm in zip(
            self.weights,
            reference.weights,
            (a * b for a, b in zip(self.norms, reference.norms, strict=True)),
            strict=True,
        ):
            dot = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in mine.items() if ngram in theirs)
            cosines += dot / norm if norm else dot
        return penalty * cosines / MAX_NGRAM


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of the whole set, brevity against the reference nearest in length."""
    texts, referred = _checked(candidates, references)
    right, said = [0] * MAX_NGRAM, [0] * MAX_NGRAM
    length = wanted_length = 0
    for words, several in zip(texts, referred, strict=True):
        allowed: dict[Ngram, int] = {}
        for counts in map(_ngrams, several):
            for ngram, count in counts.items():
                allowed[ngram] = max(count, allowed.get(ngram, 0))
        for ngram, count in _ngrams(words).items():
            right[len(ngram) - 1] += min(count, allowed.get(ngram, 0))
        for n in range(MAX_NGRAM):
            said[n] += max(0, len(words) - n)
        length += len(words)
        wanted_length += min((abs(len(other) - len(words)), len(other)) for other in several)[1]
    ratio = (length + _TINY) / (wanted_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_NGRAM):
        product *= (right[n] + _TINY) / (said[n] + _SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return tuple(scores)


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L, mean over clips: longest common subsequence, best precision and best recall over the references."""
    texts, referred = _checked(candidates, references)
    return sum(_rouge_l(words, several) for words, several in zip(texts, referred, strict=True)) / len(texts)


def _rouge_l(words: list[str], references: list[list[str]]) -> float:
    common = [_longest_common(words, reference) for reference in references]
    precision = max(common) / max(1, len(words))
    recall = max(count / max(1, len(reference)) for count, reference in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, theirs in enumerate(other, start=1):
            above = row[place]
            row[place] = before + 1 if word == theirs else max(above, row[place - 1])
            before = above
    return row[-1]


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """Counts of all runs of 1 to `MAX_NGRAM` words."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1)
    )


def _checked(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    if not candidates or len(candidates) != len(references):
        raise UsageError(f"{len(candidates)} captions against the references of {len(references)} clips")
    for index, several in enumerate(references):
        if isinstance(several, str) or not several:
            raise UsageError(f"clip {index} needs a list of one reference or more, not {several!r}")
    return [tokenise(text) for text in candidates], [[tokenise(text) for text in several] for several in references]


def recall_at(cosine_AB: np.ndarray, ks: Iterable[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of rows whose own column (row i, column i) is among the k largest; a tie counts against the row."""
    if cosine_AB.ndim != 2 or cosine_AB.shape[0] != cosine_AB.shape[1] or not len(cosine_AB):
        raise UsageError(f"recall needs a square table of cosines, not {cosine_AB.shape}")
    ranks = (cosine_AB >= np.diagonal(cosine_AB)[:, None]).sum(axis=1)
    return {k: float((ranks <= k).mean()) for k in ks}
