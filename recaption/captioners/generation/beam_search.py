"""Beam search by summed log-probability; finished captions are ranked with a length penalty.

Each clip keeps `num_beams` live beams at every step, uses true log-probabilities (open_clip adds raw logits), and leaves
the batch when its search is finished. Shapes: K beams of a clip, R = B*K rows, V vocabulary, C candidates of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recaption.captioners.generation.kv_cache import CachedDecoder
from recaption.captioners.generation.settings import DecodingSettings, GeneratedTokens, SpecialTokens


def beam_search(
    decoder: CachedDecoder,
    prompt: list[int],
    max_tokens: int,
    special: SpecialTokens,
    decoding: DecodingSettings,
    return_kv_cache: bool = False,
) -> list[GeneratedTokens]:
    """The best caption of each clip.

    Args:
        prompt: token ids that every caption starts with, the start token included.
    """
    num_beams = decoding.num_beams
    device = decoder.device
    beams = [_ClipBeams(num_beams, decoding.length_penalty) for _ in range(decoder.num_clips)]
    active_clips = list(range(decoder.num_clips))
    next_input = torch.tensor([prompt], device=device).expand(decoder.num_clips * num_beams, -1)
    for index in range(max_tokens):
        logits_RV = decoder.step(next_input)
        log_normalizer_R1 = logits_RV.logsumexp(dim=-1, keepdim=True)
        # each beam can end in two ways (end, pad): among the 3K best of a clip at least K are live, and no row has more
        best = logits_RV.topk(min(3 * num_beams, logits_RV.shape[1]), dim=-1)
        # one transfer per step, which waits for the device: token ids are exact in float64
        packed = torch.stack([(best.values - log_normalizer_R1).double(), best.indices.double()]).tolist()
        logprobs, candidates = packed[0], [[int(token) for token in row] for row in packed[1]]
        rows: list[int] = []
        tokens: list[int] = []
        unfinished: list[int] = []
        for position, clip in enumerate(active_clips):
            span = slice(position * num_beams, (position + 1) * num_beams)
            is_better = beams[clip].extend(candidates[span], logprobs[span], special)
            if return_kv_cache and (is_better or (index + 1 == max_tokens and beams[clip].best_finished is None)):
                beams[clip].kv_cache_LKPD = decoder.text_kv_cache(span.start + beams[clip].best_parent())
            if not beams[clip].is_finished():
                unfinished.append(position)
                rows += [position * num_beams + parent for parent in beams[clip].parents]
                tokens += [beam[-1] for beam in beams[clip].tokens]
        if not unfinished or index + 1 == max_tokens:
            break
        decoder.select_rows(rows, unfinished)
        active_clips = [active_clips[position] for position in unfinished]
        next_input = torch.tensor(tokens, device=device)[:, None]
    return [clip_beams.best() for clip_beams in beams]


class _ClipBeams:
    """Live beams and finished captions of one clip."""

    def __init__(self, num_beams: int, length_penalty: float) -> None:
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.tokens: list[list[int]] = [[] for _ in range(num_beams)]
        self.logprobs: list[list[float]] = [[] for _ in range(num_beams)]
        # all beams start alike: only the first may grow at the first step
        self.scores = [0.0] + [-torch.inf] * (num_beams - 1)
        self.parents = list(range(num_beams))
        self.finished: list[GeneratedTokens] = []
        self.best_finished: GeneratedTokens | None = None
        self.parent_of_best_finished = 0
        self.kv_cache_LKPD: Tensor | None = None

    def extend(
        self, candidates_KC: Sequence[Sequence[int]], logprobs_KC: Sequence[Sequence[float]], special: SpecialTokens
    ) -> bool:
        """Add one token: continuations among the K best that end are finished, the K best live ones become the beams.

        Args:
            candidates_KC: the most probable next tokens of each beam, the 3K best of all among them.

        Returns:
            whether a caption that has just finished is the best so far.
        """
        best_before = self.best_finished
        continuations = [
            (self.scores[parent] + logprob, parent, token, logprob)
            for parent, (tokens_C, logprobs_C) in enumerate(zip(candidates_KC, logprobs_KC, strict=True))
            for token, logprob in zip(tokens_C, logprobs_C, strict=True)
        ]
        continuations.sort(key=lambda continuation: -continuation[0])
        tokens: list[list[int]] = []
        logprobs: list[list[float]] = []
        scores: list[float] = []
        parents: list[int] = []
        for rank, (score, parent, token, logprob) in enumerate(continuations[: 3 * self.num_beams]):
            if token in (special.end, special.pad):
                if rank < self.num_beams and score > -torch.inf:
                    self._add_finished((*self.tokens[parent], token), (*self.logprobs[parent], logprob), parent)
                continue
            if len(tokens) < self.num_beams:
                tokens.append([*self.tokens[parent], token])
                logprobs.append([*self.logprobs[parent], logprob])
                scores.append(score)
                parents.append(parent)
        self.tokens, self.logprobs, self.scores, self.parents = tokens, logprobs, scores, parents
        return self.best_finished is not best_before

    def _add_finished(self, tokens: tuple[int, ...], logprobs: tuple[float, ...], parent: int) -> None:
        caption = GeneratedTokens(tokens=tokens, logprobs=logprobs, ended=True)
        self.finished.append(caption)
        if self.best_finished is None or self._score(caption) > self._score(self.best_finished):
            self.best_finished, self.parent_of_best_finished = caption, parent

    def is_finished(self) -> bool:
        """Whether K captions are finished and no live beam scores better than the K-th of them."""
        if len(self.finished) < self.num_beams:
            return False
        worst = sorted((self._score(caption) for caption in self.finished), reverse=True)[self.num_beams - 1]
        return max(self.scores) / len(self.tokens[0]) ** self.length_penalty <= worst

    def best(self) -> GeneratedTokens:
        """The best finished caption; if none finished, the best live beam, truncated."""
        if self.best_finished is not None:
            return replace(self.best_finished, kv_cache_LKPD=self.kv_cache_LKPD)
        top = self._best_live()
        tokens, logprobs = tuple(self.tokens[top]), tuple(self.logprobs[top])
        return GeneratedTokens(tokens=tokens, logprobs=logprobs, ended=False, kv_cache_LKPD=self.kv_cache_LKPD)

    def best_parent(self) -> int:
        """Index of the beam, at the last step, that the best caption continues."""
        return self.parents[self._best_live()] if self.best_finished is None else self.parent_of_best_finished

    def _best_live(self) -> int:
        return max(range(len(self.tokens)), key=lambda beam: self.scores[beam])

    def _score(self, caption: GeneratedTokens) -> float:
        return sum(caption.logprobs) / len(caption.logprobs) ** self.length_penalty
