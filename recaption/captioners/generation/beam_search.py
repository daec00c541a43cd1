"""Beam search by summed log-probability; ended captions are compared with a length penalty.

Each clip has as many live beams as asked for at every step, true log-probabilities (open_clip adds raw logits), and a
search of its own: it leaves the batch when it is done. Shapes: K beams of a clip, R = B*K rows, V vocabulary, C
candidates of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recaption.captioners.generation.kv_cache import DecodingSteps
from recaption.captioners.generation.settings import Decoding, Generated, SpecialTokens


def beam_search(
    steps: DecodingSteps,
    first: list[int],
    max_tokens: int,
    special: SpecialTokens,
    decoding: Decoding,
    keep_states: bool = False,
) -> list[Generated]:
    """The best caption of each clip."""
    num_beams = decoding.num_beams
    device = steps.device
    beams = [_Beams(num_beams, decoding.length_penalty) for _ in range(steps.num_clips)]
    present = list(range(steps.num_clips))
    newest = torch.tensor([first], device=device).expand(steps.num_clips * num_beams, -1)
    for index in range(max_tokens):
        logits_RV = steps.step(newest)
        normaliser_R1 = logits_RV.logsumexp(dim=-1, keepdim=True)
        if index < decoding.min_tokens:
            logits_RV[:, special.end] = -torch.inf
        # each beam can end in two ways (end, pad): among the 3K best of a clip at least K are live, and no row has more
        best = logits_RV.topk(min(3 * num_beams, logits_RV.shape[1]), dim=-1)
        logprobs, candidates = (best.values - normaliser_R1).tolist(), best.indices.tolist()
        rows: list[int] = []
        tokens: list[int] = []
        kept_clips: list[int] = []
        for place, clip in enumerate(present):
            span = slice(place * num_beams, (place + 1) * num_beams)
            is_better = beams[clip].extend(candidates[span], logprobs[span], special)
            if keep_states and (is_better or (index + 1 == max_tokens and beams[clip].best_done is None)):
                beams[clip].states_LKPD = steps.text_states(span.start + beams[clip].best_parent())
            if not beams[clip].is_done():
                kept_clips.append(place)
                rows += [place * num_beams + parent for parent in beams[clip].parents]
                tokens += [said[-1] for said in beams[clip].said]
        if not kept_clips or index + 1 == max_tokens:
            break
        steps.keep(rows, kept_clips)
        present = [present[place] for place in kept_clips]
        newest = torch.tensor(tokens, device=device)[:, None]
    return [clip_beams.best() for clip_beams in beams]


class _Beams:
    """The live beams of one clip and the captions that have ended."""

    def __init__(self, num_beams: int, length_penalty: float) -> None:
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.said: list[list[int]] = [[] for _ in range(num_beams)]
        self.logprobs: list[list[float]] = [[] for _ in range(num_beams)]
        # all beams start alike: only the first may grow at the first step
        self.scores = [0.0] + [-torch.inf] * (num_beams - 1)
        self.parents = list(range(num_beams))
        self.done: list[Generated] = []
        self.best_done: Generated | None = None
        self.parent_of_best_done = 0
        self.states_LKPD: Tensor | None = None

    def extend(
        self, candidates_KC: Sequence[Sequence[int]], logprobs_KC: Sequence[Sequence[float]], special: SpecialTokens
    ) -> bool:
        """One token further: ended continuations among the K best are set aside, the K best live ones stay.

        Args:
            candidates_KC: the most probable next tokens of each beam, the 3K best of all among them.

        Returns:
            whether one that has just ended is the best so far.
        """
        best_before = self.best_done
        grown = [
            (self.scores[parent] + logprob, parent, token, logprob)
            for parent, (tokens, logprobs_C) in enumerate(zip(candidates_KC, logprobs_KC, strict=True))
            for token, logprob in zip(tokens, logprobs_C, strict=True)
        ]
        grown.sort(key=lambda one: -one[0])
        said: list[list[int]] = []
        logprobs: list[list[float]] = []
        scores: list[float] = []
        parents: list[int] = []
        for rank, (score, parent, token, logprob) in enumerate(grown[: 3 * self.num_beams]):
            if token in (special.end, special.pad):
                if rank < self.num_beams and score > -torch.inf:
                    self._set_aside((*self.said[parent], token), (*self.logprobs[parent], logprob), parent)
                continue
            if len(said) < self.num_beams:
                said.append([*self.said[parent], token])
                logprobs.append([*self.logprobs[parent], logprob])
                scores.append(score)
                parents.append(parent)
        self.said, self.logprobs, self.scores, self.parents = said, logprobs, scores, parents
        return self.best_done is not best_before

    def _set_aside(self, tokens: tuple[int, ...], logprobs: tuple[float, ...], parent: int) -> None:
        ended = Generated(tokens=tokens, logprobs=logprobs, ended=True)
        self.done.append(ended)
        if self.best_done is None or self._score(ended) > self._score(self.best_done):
            self.best_done, self.parent_of_best_done = ended, parent

    def is_done(self) -> bool:
        """K captions have ended and no live beam scores better than the K-th of them."""
        if len(self.done) < self.num_beams:
            return False
        worst = sorted((self._score(caption) for caption in self.done), reverse=True)[self.num_beams - 1]
        return max(self.scores) / len(self.said[0]) ** self.length_penalty <= worst

    def best(self) -> Generated:
        """The best ended caption; where none ended, the best beam cut short."""
        if self.best_done is not None:
            return replace(self.best_done, states_LKPD=self.states_LKPD)
        top = self._best_live()
        said, logprobs = tuple(self.said[top]), tuple(self.logprobs[top])
        return Generated(tokens=said, logprobs=logprobs, ended=False, states_LKPD=self.states_LKPD)

    def best_parent(self) -> int:
        """Which of the beams of the last step the best caption goes on from."""
        return self.parents[self._best_live()] if self.best_done is None else self.parent_of_best_done

    def _best_live(self) -> int:
        return max(range(len(self.said)), key=lambda beam: self.scores[beam])

    def _score(self, caption: Generated) -> float:
        return sum(caption.logprobs) / len(caption.logprobs) ** self.length_penalty
