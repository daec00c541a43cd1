"""Quality gates for generated captions: text faults (captions/text.py), length for the text encoder, clip score.

    gates = QualityGates(min_clip_score=0.8, token_budget=budget_of_t5)
    described = gates.apply(described, kind="descriptive", clip_ids=["clip-1", "clip-2"])    # bad captions have a fault

Two rules find captions that do not match their frames. Both use the captioner's contrastive embeddings, where a clip is one
embedding of all its sampled frames.

- `min_clip_score`, an absolute limit, has to be measured for each captioner; its config may hold one. It also stops captions
  of out-of-domain clips, which score low with every text. Where the captioner stores embeddings of training clips
  (captioners/videococa/out_of_domain.py), the limit is higher for clips unlike all of them.
- `min_score_margin` needs no calibration: a caption's score has to exceed the mean score of other clips' captions by it.

Measured with `tiny` at its first version, on 120 scenes and 34 real clips whose captions are all wrong
(tests/benchmarks/recaption/bench_caption_gates.py): AUC of right captions against those of real clips 0.994 (clip score)
and 0.970 (margin), against captions swapped between scenes 1.000 for both. The limit that 99 of 100 right captions pass,
0.789, stops 94 % of those of real clips; a margin of 0.777 stops 88 %. The mean log-probability is no useful rule: AUC 0.655
and 0.500.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recaption.captions.text import find_fault, reason_of
from recaption.records import Caption

if TYPE_CHECKING:
    from recaption.captioners.interface import CaptionBatch


ORIGINAL_FAULTS = ("empty", "looping", "markup", "over_long")
"""What makes a text beside a video bad: people may write what a captioner may not."""


@dataclass(frozen=True)
class TokenBudget:
    """The context length and the token counter of the text encoder that reads the captions in training."""

    max_tokens: int
    """Context length of the text encoder; longer texts would be truncated."""
    count_tokens: Callable[[Sequence[str]], list[int]]
    """Token count of each untruncated text, special tokens included."""


@dataclass(frozen=True, kw_only=True)
class QualityGates:
    """The thresholds of one caption job. None: this gate is off."""

    min_clip_score: float | None = None
    min_clip_scores: Callable[[np.ndarray], np.ndarray | None] | None = None
    """The captioner's own thresholds per clip, from clip embeddings; used where `min_clip_score` is None."""
    min_score_margin: float | None = None
    token_budget: TokenBudget | None = None

    def apply(self, described: CaptionBatch, *, kind: str, clip_ids: Sequence[str]) -> CaptionBatch:
        """A copy of `described` in which captions that fail a gate have a reason and a fault.

        Args:
            clip_ids: clip id of each caption. Captions of windows of one clip are not negatives of each other.
        """
        texts = [caption.text for caption in described.captions]
        is_over_long = self._is_over_long(texts)
        is_low_score = self._is_low_score(described, clip_ids) if kind == "descriptive" else [False] * len(texts)
        captions: list[Caption] = []
        for index, caption in enumerate(described.captions):
            fault = caption.fault or find_fault(caption.text, kind=kind) or ("truncated" if caption.reason else None)
            fault = (
                fault
                or ("over_long" if is_over_long[index] else None)
                or ("low_score" if is_low_score[index] else None)
            )
            captions.append(mark_bad(caption, fault) if fault else caption)
        return dataclasses.replace(described, captions=captions)

    def apply_to_original(self, caption: Caption) -> Caption:
        """Gate a text that came with the video: empty, looping, over-long ones, markup and broken letters are bad."""
        fault = find_fault(caption.text)
        is_broken = fault == "glitch" and "\ufffd" in caption.text
        fault = fault if fault in ORIGINAL_FAULTS or is_broken else None
        fault = fault or ("over_long" if self._is_over_long([caption.text])[0] else None)
        return mark_bad(caption, fault) if fault else caption

    def reduced_max_tokens(self, texts: Sequence[str], max_tokens: int) -> int:
        """`max_tokens` for retrying over-long captions: scaled so that the longest of `texts` fits, with 10 % reserve."""
        if self.token_budget is None or not texts:
            return max_tokens
        most_tokens = max(self.token_budget.count_tokens(texts))
        return max(1, min(max_tokens, int(0.9 * max_tokens * self.token_budget.max_tokens / max(most_tokens, 1))))

    def _is_over_long(self, texts: Sequence[str]) -> list[bool]:
        if self.token_budget is None or not texts:
            return [False] * len(texts)
        return [count > self.token_budget.max_tokens for count in self.token_budget.count_tokens(texts)]

    def _is_low_score(self, described: CaptionBatch, clip_ids: Sequence[str]) -> list[bool]:
        if described.clip_embeddings_BD is None or described.text_embeddings_BD is None:
            return [False] * len(clip_ids)
        score_B = (described.clip_embeddings_BD * described.text_embeddings_BD).sum(axis=1)
        is_low = np.zeros(len(score_B), bool)
        if self.min_clip_score is not None:
            is_low |= score_B < self.min_clip_score
        elif self.min_clip_scores and (threshold_B := self.min_clip_scores(described.clip_embeddings_BD)) is not None:
            is_low |= score_B < threshold_B
        if self.min_score_margin is not None:
            margin_B = score_margins(described.clip_embeddings_BD @ described.text_embeddings_BD.T, clip_ids)
            is_low |= margin_B < self.min_score_margin  # False for NaN, where there is no other clip
        return is_low.tolist()


def score_margins(scores_BB: np.ndarray, clip_ids: Sequence[str]) -> np.ndarray:
    """Clip score of each caption minus the mean score of other clips' captions with the same clip: (B,).

    Args:
        scores_BB: clips x captions.
        clip_ids: clip id of each caption.

    Returns:
        NaN where all captions are of one clip.
    """
    ids = np.asarray(clip_ids)
    is_other = ids[:, None] != ids[None, :]
    num_others = is_other.sum(axis=1)
    others = np.where(is_other, scores_BB, 0.0).sum(axis=1) / np.where(num_others, num_others, 1)
    return np.where(num_others > 0, np.diag(scores_BB) - others, np.nan)


def mark_bad(caption: Caption, fault: str) -> Caption:
    """A copy of `caption` with one of `captions.text.FAULTS`, and the reason that belongs to it."""
    return dataclasses.replace(caption, reason=reason_of(fault), fault=fault)
