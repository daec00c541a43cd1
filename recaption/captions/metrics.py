"""Caption metrics against references: CIDEr-D, BLEU, ROUGE-L, retrieval recall. Needs neither Java nor torch.

    caption_scores(["a dog runs"], [["a dog is running", "the dog runs fast"]])
    {"cider_d": ..., "bleu_1": ..., ..., "bleu_4": ..., "rouge_l": ...}
    recall_at(cosine_BB, (1, 5, 10))      # column i is the match of row i

The numbers equal those of pycocoevalcap, on its scale (CIDEr-D 1.0 where papers write 100). Candidates and references are
raw text; `tokenize_ptb` does what that package's Java tokenizer (Penn Treebank) does: lower case, no punctuation, "don't"
becomes "do n't". Scripts without spaces between words are counted by graphemes (`words`), as is usual for Chinese.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import regex

from recaption.captions.words import separate_graphemes
from recaption.errors import UsageError

MAX_NGRAM = 4
CIDER_SIGMA = 6.0
"""Standard deviation of the Gaussian length penalty of CIDEr-D (arXiv 1411.5726)."""
CIDER_SCALE = 10.0
ROUGE_BETA = 1.2
"""Weight of recall against precision, as in the MS-COCO evaluation."""
_TINY, _SMALL = 1e-15, 1e-9
"""Avoid division by zero in BLEU; the values are those of the reference implementation."""
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


def _token_pattern(letters: str) -> str:
    return (
        r"n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w)"  # suffix of a contraction
        rf"|\d+(?:[.,:/]\d+)*(?![{letters}-])"  # 1,000 3.5 10:30 1/2
        r"|(?:[a-z]\.){2,}|(?:mr|mrs|ms|dr|st|jr|sr|vs|prof)\.(?=\s)"  # u.s. mr.
        rf"|[@]?[{letters}]+(?:[-'/&.@][{letters}]+)*"  # t-shirt o'clock
        r"|[()\[\]{}]|[$%#&*+=@<>^~|\\/_]"
    )


_TOKEN = re.compile(_token_pattern(r"\w"))
_ANY_SCRIPT_TOKEN = regex.compile(_token_pattern(r"\w\p{M}\p{N}"))
"""With the vowel signs of Indic scripts as letters, which Python's `re` does not count as such."""
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def tokenize_ptb(text: str) -> list[str]:
    """Lower-case Penn Treebank words without punctuation."""
    text = text.lower().replace("’", "'").replace("‘", "'")
    text = _CONTRACTION.sub(r" \1", text)
    text = separate_graphemes(text)
    found = _TOKEN.findall(text) if text.isascii() else _ANY_SCRIPT_TOKEN.findall(text)
    words = [_BRACKETS.get(word, word) for word in found]
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
    """CIDEr-D, mean over clips: tf-idf weighted n-gram similarity to the references.

    The idf comes from these references: scores of different data sets cannot be compared, and for a single clip every
    weight is 0.
    """
    texts, reference_texts = _tokenize_checked(candidates, references)
    document_frequency: Counter[Ngram] = Counter()
    reference_counts = [[_ngrams(words) for words in references] for references in reference_texts]
    for counts_of_clip in reference_counts:
        document_frequency.update({ngram for counts in counts_of_clip for ngram in counts})
    idf: dict[Ngram, float] = defaultdict(lambda: math.log(len(texts)))
    idf |= {ngram: math.log(len(texts) / num_clips) for ngram, num_clips in document_frequency.items()}
    total = 0.0
    for words, counts_of_clip in zip(texts, reference_counts, strict=True):
        candidate = _TfIdf(_ngrams(words), idf)
        total += sum(candidate.similarity(_TfIdf(counts, idf)) for counts in counts_of_clip) / len(counts_of_clip)
    return CIDER_SCALE * total / len(texts)


class _TfIdf:
    """tf-idf vectors of one text, one per n-gram length."""

    def __init__(self, counts: Mapping[Ngram, int], idf: Mapping[Ngram, float]) -> None:
        self.weights: list[dict[Ngram, float]] = [{} for _ in range(MAX_NGRAM)]
        for ngram, count in counts.items():
            self.weights[len(ngram) - 1][ngram] = count * idf[ngram]
        self.norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in self.weights]
        # the reference implementation counts bigrams as the length
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)

    def similarity(self, reference: _TfIdf) -> float:
        """Mean over n of the cosine with counts clipped to the reference, times the length penalty."""
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * CIDER_SIGMA**2))
        cosines = 0.0
        for weights, reference_weights, norm in zip(
            self.weights,
            reference.weights,
            (a * b for a, b in zip(self.norms, reference.norms, strict=True)),
            strict=True,
        ):
            dot = sum(
                min(weight, reference_weights[ngram]) * reference_weights[ngram]
                for ngram, weight in weights.items()
                if ngram in reference_weights
            )
            cosines += dot / norm if norm else dot
        return penalty * cosines / MAX_NGRAM


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Corpus BLEU-1 to BLEU-4; the brevity penalty uses the reference closest in length."""
    texts, reference_texts = _tokenize_checked(candidates, references)
    num_matches, num_ngrams = [0] * MAX_NGRAM, [0] * MAX_NGRAM
    length = reference_length = 0
    for words, references_of_clip in zip(texts, reference_texts, strict=True):
        max_counts: dict[Ngram, int] = {}
        for counts in map(_ngrams, references_of_clip):
            for ngram, count in counts.items():
                max_counts[ngram] = max(count, max_counts.get(ngram, 0))
        for ngram, count in _ngrams(words).items():
            num_matches[len(ngram) - 1] += min(count, max_counts.get(ngram, 0))
        for n in range(MAX_NGRAM):
            num_ngrams[n] += max(0, len(words) - n)
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in references_of_clip)[1]
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_NGRAM):
        product *= (num_matches[n] + _TINY) / (num_ngrams[n] + _SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return tuple(scores)


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L, mean over clips: F-score of the longest common subsequence, best precision and recall over references."""
    texts, reference_texts = _tokenize_checked(candidates, references)
    scores = (_rouge_l(words, references) for words, references in zip(texts, reference_texts, strict=True))
    return sum(scores) / len(texts)


def _rouge_l(words: list[str], references: list[list[str]]) -> float:
    common = [_lcs_length(words, reference) for reference in references]
    precision = max(common) / max(1, len(words))
    recall = max(count / max(1, len(reference)) for count, reference in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for column, other in enumerate(b, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """Counts of all n-grams of 1 to `MAX_NGRAM` words."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1)
    )


def _tokenize_checked(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Tokenized candidates and references; raises UsageError where they do not match or a clip has no reference."""
    if not candidates or len(candidates) != len(references):
        raise UsageError(f"{len(candidates)} captions against the references of {len(references)} clips")
    for index, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise UsageError(f"clip {index} needs a list of one reference or more, not {texts!r}")
    return [tokenize_ptb(text) for text in candidates], [[tokenize_ptb(text) for text in texts] for texts in references]


def recall_at(cosine_BB: np.ndarray, ks: Iterable[int] = (1, 5, 10)) -> dict[int, float]:
    """Recall at k: fraction of rows i whose match, column i, is among the k largest; ties count as misses."""
    if cosine_BB.ndim != 2 or cosine_BB.shape[0] != cosine_BB.shape[1] or not len(cosine_BB):
        raise UsageError(f"recall needs a square matrix of cosines, not {cosine_BB.shape}")
    ranks = (cosine_BB >= np.diagonal(cosine_BB)[:, None]).sum(axis=1)
    return {k: float((ranks <= k).mean()) for k in ks}
