"""Whether samples show what their prompts ask for, as a captioner reads them.

following = follow(prompts, described, captioner)      # CaptionBatch: captions and embeddings of the samples, in order
following.fields["colour"]                             # Share(value=0.91, chance=0.13, num=64)
following.matched, following.mismatched                # mean contrastive scores

A field counts where the caption of a sample names exactly the word that its prompt names. What chance would give is no
formula but counted: the share of hits where every sample is held against the prompts of all others.

Shape suffixes: N samples, F fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from recaption.captioners.interface import CaptionBatch
from recaption.records import CaptionFields
from recaption.scenes.captions import describes_scene, fields_in

FIELDS = tuple(field.name for field in dataclasses.fields(CaptionFields))


SUBJECT = "main_object+colour"
"""Both at once: whether the thing itself is the one asked for."""


ALL_FIELDS = "all_fields"
"""Every field that the prompt names at once."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of `num` samples show what their prompts name."""

    value: float
    num: int
    chance: float | None
    """The same with the prompts of the other samples; None where there are no others."""


@dataclass(frozen=True, kw_only=True)
class Following:
    """What was found; empty where prompts name no field, None where the captioner has no contrastive space."""

    fields: Mapping[str, Share] = field(default_factory=dict)
    """Name of a field, `SUBJECT` or `ALL_FIELDS`."""
    matched: float | None = None
    """Mean contrastive score of a sample with its own prompt."""
    mismatched: float | None = None
    """The same with the prompts of other samples."""
    best_match: Share | None = None
    """Share of samples that score highest with their own prompt among all different ones."""


class TextEmbedder(Protocol):
    """The part of a captioner that is needed once clips are described."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray: ...


def follow(prompts: Sequence[str], described: CaptionBatch, captioner: TextEmbedder) -> Following:
    """Hold what a captioner said about samples against their prompts.

    Args:
        prompts: one per sample. Those that name no object of a scene and what it does (`describes_scene`) have no fields:
            the words of a scene mean other things in other sentences.
        described: of the samples, in the order of the prompts.
    """
    said = [fields_in(caption.text) for caption in described.captions]
    wanted = [fields_in(prompt) if describes_scene(prompt) else CaptionFields() for prompt in prompts]
    following = Following(fields=_shares(wanted, said))
    if described.clip_embeddings_BD is None or not prompts:
        return following
    cosine_NN = described.clip_embeddings_BD @ captioner.embed_texts(list(prompts)).T
    others_NN = np.array([[one != other for other in prompts] for one in prompts])
    num_different = len(set(prompts))
    best = cosine_NN.argmax(axis=1)
    return dataclasses.replace(
        following,
        matched=float(np.diag(cosine_NN).mean()),
        mismatched=float(cosine_NN[others_NN].mean()) if others_NN.any() else None,
        best_match=Share(
            value=float(np.mean([prompts[at] == prompt for at, prompt in zip(best, prompts)])),
            num=len(prompts),
            chance=1 / num_different,
        ),
    )


def _shares(wanted: Sequence[CaptionFields], said: Sequence[CaptionFields]) -> dict[str, Share]:
    hits_FNN = {name: _hits([getattr(x, name) for x in wanted], [getattr(x, name) for x in said]) for name in FIELDS}
    named_FN = {name: np.array([bool(getattr(x, name)) for x in wanted], bool) for name in FIELDS}
    shares = {name: _share(hits_FNN[name], named_FN[name]) for name in FIELDS}
    shares[SUBJECT] = _share(hits_FNN["main_object"] & hits_FNN["colour"], named_FN["main_object"] & named_FN["colour"])
    every_NN = np.all([hits_FNN[name] | ~named_FN[name][None] for name in FIELDS], axis=0)
    shares[ALL_FIELDS] = _share(every_NN, np.any(list(named_FN.values()), axis=0))
    return {name: share for name, share in shares.items() if share is not None}


def _hits(wanted: Sequence[str], said: Sequence[str]) -> np.ndarray:
    """(N, N): row = sample, column = prompt."""
    return np.array(said, dtype=object)[:, None] == np.array(wanted, dtype=object)[None]


def _share(hits_NN: np.ndarray, named_N: np.ndarray) -> Share | None:
    """Of the samples whose prompts name the field: own prompt on the diagonal, those of the others beside it."""
    num = int(named_N.sum())
    if not num:
        return None
    hits = hits_NN[np.ix_(named_N, named_N)]
    own = int(np.trace(hits))
    chance = (int(hits.sum()) - own) / (num * (num - 1)) if num > 1 else None
    return Share(value=own / num, num=num, chance=chance)
