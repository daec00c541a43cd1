"""Gates of one caption job: what the text alone cannot tell (text.py tells that), judged batch by batch.

    gates = Gates(min_clip_score=0.8, longest=length_of_t5)
    gates.judge(described, kind="descriptive", owners=["clip-1", "clip-2"])      # described.captions now carry faults

Two rules say that a caption is about something else than its frames, both from the captioner's own contrastive space,
where a clip stands for all of its sampled frames. The absolute one needs a limit that was measured with this captioner: it
may stand in its config as `min_clip_score`. It sees captions of footage that the captioner does not know, which score low
with everything; where the captioner keeps a few clips of its training (captioners/familiar.py), the limit rises for clips
unlike all of them. The relative one needs no calibration: a caption has to beat the captions of other clips with its clip by
a margin. The captioner of the package at its first version, 120 scenes and 34 real clips whose captions are all wrong
(tests/benchmarks/recaption/bench_caption_gates.py): right captions against those of real clips AUC 0.994 and 0.970, against
captions exchanged between scenes 1.000 both; the limit that 99 of 100 right ones pass, 0.789, stops 94 % of those of real
clips, and a margin of 0.777 stops 88 %. The mean log-probability tells little: 0.655 and 0.500.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recaption.captions.text import fault_in
from recaption.records import Caption

if TYPE_CHECKING:
    from recaption.captioners.interface import Described


BAD = "bad_caption"


@dataclass(frozen=True)
class TextLength:
    """How long texts are for the text encoder that will read them in training."""

    limit: int
    """Most tokens that it reads; what is longer would be cut."""
    count: Callable[[Sequence[str]], list[int]]
    """Tokens of each whole text, those that the encoder adds included."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits of one job. None: this gate is off."""

    min_clip_score: float | None = None
    least_scores: Callable[[np.ndarray], np.ndarray | None] | None = None
    """The captioner's own limits, from where clips lie; used where there is no `min_clip_score`."""
    min_score_margin: float | None = None
    length: TextLength | None = None

    def judge(self, described: Described, *, kind: str, owners: Sequence[str]) -> None:
        """Set reason and fault of captions that fail.

        Args:
            owners: clip id of each caption. Captions of the same clip, of its windows, are no strangers to each other.
        """
        texts = [caption.text for caption in described.captions]
        is_long = self._too_long(texts)
        is_low = self._too_low(described, owners) if kind == "descriptive" else [False] * len(texts)
        for row, caption in enumerate(described.captions):
            fault = caption.fault or fault_in(caption.text, kind=kind) or ("truncated" if caption.reason else None)
            fault = fault or ("over_long" if is_long[row] else None) or ("low_score" if is_low[row] else None)
            if fault:
                described.captions[row] = bad(caption, fault)

    def judge_original(self, caption: Caption) -> Caption:
        """A text that came with the video: people may write anything, but it must not be empty, a loop or over-long."""
        fault = fault_in(caption.text)
        fault = fault if fault in ("empty", "looping") else None
        fault = fault or ("over_long" if self._too_long([caption.text])[0] else None)
        return bad(caption, fault) if fault else caption

    def fewer_tokens(self, texts: Sequence[str], max_tokens: int) -> int:
        """A limit for the captioner at which texts as dense as these fit the text encoder."""
        if self.length is None or not texts:
            return max_tokens
        longest = max(self.length.count(texts))
        return max(1, min(max_tokens, int(0.9 * max_tokens * self.length.limit / max(longest, 1))))

    def _too_long(self, texts: Sequence[str]) -> list[bool]:
        if self.length is None or not texts:
            return [False] * len(texts)
        return [count > self.length.limit for count in self.length.count(texts)]

    def _too_low(self, described: Described, owners: Sequence[str]) -> list[bool]:
        if described.clip_BD is None or described.text_BD is None:
            return [False] * len(owners)
        own_B = (described.clip_BD * described.text_BD).sum(axis=1)
        is_low = np.zeros(len(own_B), bool)
        if self.min_clip_score is not None:
            is_low |= own_B < self.min_clip_score
        elif self.least_scores and (least_B := self.least_scores(described.clip_BD)) is not None:
            is_low |= own_B < least_B
        if self.min_score_margin is not None:
            margin_B = score_margins(described.clip_BD @ described.text_BD.T, owners)
            is_low |= margin_B < self.min_score_margin  # NaN, where there is no other clip, is not
        return [bool(one) for one in is_low]


def score_margins(scores_BB: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """(B,) a caption's score with its own clip, less the mean score of the captions of other clips with that clip.

    Args:
        scores_BB: row i holds clip i with every caption.
        owners: clip id of each row. NaN where all rows are of one clip.
    """
    names = np.asarray(owners)
    is_other = names[:, None] != names[None, :]
    num_others = is_other.sum(axis=1)
    others = np.where(is_other, scores_BB, 0.0).sum(axis=1) / np.where(num_others, num_others, 1)
    return np.where(num_others > 0, np.diag(scores_BB) - others, np.nan)


def bad(caption: Caption, fault: str) -> Caption:
    """`caption` marked with one of `captions.FAULTS`."""
    return dataclasses.replace(caption, reason=BAD, fault=fault)
