"""Prompt adherence: agreement of generated captions of samples with their prompts.

    adherence = measure_adherence(prompts, described, captioner)  # captions and embeddings of the samples, in order
    adherence.fields["colour"]                                    # HitRate(value=0.91, chance=0.13, num=64)
    adherence.matched, adherence.mismatched                       # mean contrastive scores

A field is a hit where the generated caption has exactly the word of the prompt. The chance level is counted, not computed:
the hit rate of every sample against the prompts of all others.

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
"""Both fields at once."""
ALL_FIELDS = "all_fields"
"""Every field of the prompt at once."""


@dataclass(frozen=True, kw_only=True)
class HitRate:
    """Fraction of samples that agree with their prompts."""

    value: float
    num: int
    """Number of samples."""
    chance: float | None
    """The same against the prompts of other samples; None where there are no others."""


@dataclass(frozen=True, kw_only=True)
class PromptAdherence:
    """Hit rates and contrastive scores; empty where prompts have no fields, None where the captioner has no embeddings."""

    fields: Mapping[str, HitRate] = field(default_factory=dict)
    """By name of a field, `SUBJECT` or `ALL_FIELDS`."""
    matched: float | None = None
    """Mean contrastive score (cosine) of a sample and its own prompt."""
    mismatched: float | None = None
    """Mean contrastive score of a sample and the prompts of other samples."""
    best_match: HitRate | None = None
    """Fraction of samples that score highest with their own prompt among all distinct ones."""


class TextEmbedder(Protocol):
    """The text tower of a captioner."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray: ...


def measure_adherence(prompts: Sequence[str], described: CaptionBatch, captioner: TextEmbedder) -> PromptAdherence:
    """Compare generated captions of samples with their prompts.

    Args:
        prompts: one per sample. Only those about rendered scenes (`describes_scene`) have fields: elsewhere the same words
            mean other things.
        described: captions and embeddings of the samples, in the order of the prompts.
    """
    generated = [fields_in(caption.text) for caption in described.captions]
    expected = [fields_in(prompt) if describes_scene(prompt) else CaptionFields() for prompt in prompts]
    adherence = PromptAdherence(fields=_hit_rates(expected, generated))
    if described.clip_embeddings_BD is None or not prompts:
        return adherence
    cosine_NN = described.clip_embeddings_BD @ captioner.embed_texts(list(prompts)).T
    others_NN = np.array([[one != other for other in prompts] for one in prompts])
    num_distinct = len(set(prompts))
    best = cosine_NN.argmax(axis=1)
    return dataclasses.replace(
        adherence,
        matched=float(np.diag(cosine_NN).mean()),
        mismatched=float(cosine_NN[others_NN].mean()) if others_NN.any() else None,
        best_match=HitRate(
            value=float(np.mean([prompts[index] == prompt for index, prompt in zip(best, prompts)])),
            num=len(prompts),
            chance=1 / num_distinct,
        ),
    )


def _hit_rates(expected: Sequence[CaptionFields], generated: Sequence[CaptionFields]) -> dict[str, HitRate]:
    hits_FNN = {
        name: _hits([getattr(x, name) for x in expected], [getattr(x, name) for x in generated]) for name in FIELDS
    }
    has_field_FN = {name: np.array([bool(getattr(x, name)) for x in expected], bool) for name in FIELDS}
    rates = {name: _hit_rate(hits_FNN[name], has_field_FN[name]) for name in FIELDS}
    has_both_N = has_field_FN["main_object"] & has_field_FN["colour"]
    rates[SUBJECT] = _hit_rate(hits_FNN["main_object"] & hits_FNN["colour"], has_both_N)
    every_NN = np.all([hits_FNN[name] | ~has_field_FN[name][None] for name in FIELDS], axis=0)
    rates[ALL_FIELDS] = _hit_rate(every_NN, np.any(list(has_field_FN.values()), axis=0))
    return {name: rate for name, rate in rates.items() if rate is not None}


def _hits(expected: Sequence[str], generated: Sequence[str]) -> np.ndarray:
    """bool (N, N): row = sample, column = prompt."""
    return np.array(generated, dtype=object)[:, None] == np.array(expected, dtype=object)[None]


def _hit_rate(hits_NN: np.ndarray, has_field_N: np.ndarray) -> HitRate | None:
    """Over the samples whose prompts have the field: own prompts on the diagonal, chance level from the rest."""
    num = int(has_field_N.sum())
    if not num:
        return None
    hits = hits_NN[np.ix_(has_field_N, has_field_N)]
    own = int(np.trace(hits))
    chance = (int(hits.sum()) - own) / (num * (num - 1)) if num > 1 else None
    return HitRate(value=own / num, num=num, chance=chance)
