"""Caption mixture: samples which caption variant of a clip training sees, per sample and epoch.

    weights = parse_mixture_weights(["descriptive=0.95", "original=0.05"])
    keys = rng.keys_from_names(["clip-1"])
    sample_caption_kinds(keys, epoch=3, weights=weights, seed=0)     # ["descriptive"]; "original" in 5 % of epochs

Captions written by one model share its habits: first word, length, final full stop. As in DALL-E 3, 5 % original texts
counter that.

For each sample and epoch, one uniform number is a function of (seed, clip id, epoch) alone (recaption/rng.py), whatever the
number of ranks and the reading order. It selects the kind by inverse transform over the weights, in the order in which they
are listed. Each epoch samples anew: a clip shows its original text in 5 % of its epochs, instead of 5 % of the clips
showing theirs in all epochs. A clip without the sampled kind shows its descriptive caption, which changes nothing for
other clips. Shards are not rewritten: texts are read from the caption set of the run folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from recaption import rng
from recaption.captions.text import CAPTION_KINDS
from recaption.captions.windows import caption_for_window
from recaption.errors import UsageError
from recaption.records import Caption

MIXTURE_KINDS = (*CAPTION_KINDS, "original")
"""Kinds that a mixture may weight."""
DEFAULT_WEIGHTS = ("descriptive=0.95", "original=0.05")


@dataclass(frozen=True, kw_only=True)
class CaptionMixtureSettings:
    """Which captions training sees, and how often."""

    weights: tuple[str, ...] = DEFAULT_WEIGHTS
    """KIND=WEIGHT of descriptive, short, original or a field (main_object, ...); weights are normalized to sum 1."""
    caption_set: str = ""
    """Caption set that the texts are from; "": the set of the shards."""
    seed: int = 0


def parse_mixture_weights(entries: Iterable[str]) -> dict[str, float]:
    """Kind -> weight, in the order listed; they sum to 1.

    Raises:
        UsageError: as `parse_weights`, and where no weight is above 0.
    """
    weights = parse_weights(entries, what="caption mixture weight", kinds=MIXTURE_KINDS)
    if not weights:
        raise UsageError("caption mixture weights: at least one must be above 0")
    return weights


def parse_weights(entries: Iterable[str], *, what: str, kinds: Sequence[str]) -> dict[str, float]:
    """Parse entries KIND=WEIGHT to kind -> weight, in the order listed, without zeros, normalized to sum 1.

    Args:
        what: the name of an entry in error messages.

    Raises:
        UsageError: not KIND=WEIGHT, an unknown or repeated kind, or weights that are negative or all 0. No entries: {}.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        kind, equals, text = entry.partition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = -1.0
        if not equals or not 0 <= weight < float("inf"):
            raise UsageError(f"{what} {entry!r}: write KIND=WEIGHT, such as {kinds[0]}=0.5")
        if kind not in kinds or kind in weights:
            raise UsageError(f"{what} {entry!r}: each kind once, out of {', '.join(kinds)}")
        weights[kind] = weight
    total = sum(weights.values())
    if weights and total <= 0:
        raise UsageError(f"{what}s: at least one must be above 0")
    return {kind: weight / total for kind, weight in weights.items() if weight > 0}


def sample_caption_kinds(keys_N: np.ndarray, *, epoch: int, weights: Mapping[str, float], seed: int = 0) -> list[str]:
    """The caption kind that each sample shows in an epoch.

    Args:
        keys_N: RNG keys of the samples.
        weights: of `parse_mixture_weights`.
    """
    uniforms_N = rng.sample_uniform(keys_N, seed, epoch, "caption kind")
    kinds, cumulative = list(weights), np.cumsum(list(weights.values()))
    return [kinds[kind] for kind in np.searchsorted(cumulative[:-1], uniforms_N, side="right")]


@dataclass(frozen=True)
class CaptionMixture:
    """The caption variants of each sample, from which `text` samples one."""

    clip_ids: Sequence[str]
    captions: Sequence[str]
    """The caption in the shard, for samples without variants."""
    texts_by_kind: Mapping[int, Mapping[str, str]]
    """Sample -> kind -> text; only samples with a text that differs from `captions`."""
    weights: Mapping[str, float]
    seed: int
    windows: Mapping[int, tuple[float, Sequence[Caption]]] = field(default_factory=dict)
    """Sample -> its start in seconds and all captions of its clip; only where there are captions of several windows, and
    samples are cropped in time."""

    def text(self, index: int, epoch: int, *, number: int = 0, seconds: tuple[float, float] | None = None) -> str:
        """The caption of a sample in an epoch.

        Args:
            number: counts the appearances of the sample within the epoch; each samples its own kind.
            seconds: start and end of a temporal crop, relative to the start of the sample; None: the whole sample.
        """
        texts = self.texts_by_kind.get(index)
        if seconds is not None and index in self.windows:
            start, captions = self.windows[index]
            kinds = {*self.weights, "descriptive"}
            texts = captions_for_sample(captions, kinds, start + seconds[0], start + seconds[1])
        if not texts:
            return self.captions[index]
        key = self._keys[index : index + 1]
        if number:
            key = rng.fold_in(key, np.array([number]))
        (kind,) = sample_caption_kinds(key, epoch=epoch, weights=self.weights, seed=self.seed)
        return texts.get(kind) or texts.get("descriptive") or self.captions[index]

    @cached_property
    def _keys(self) -> np.ndarray:
        return rng.keys_from_names(self.clip_ids)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which text training sees, in any epoch."""
        digest = hashlib.sha256(json.dumps([list(self.weights.items()), self.seed]).encode())
        for index, texts in sorted(self.texts_by_kind.items()):
            digest.update(json.dumps([self.clip_ids[index], sorted(texts.items())]).encode())
        for index, (start, captions) in sorted(self.windows.items()):
            rows = [(c.kind, c.source, c.start_seconds, c.end_seconds, c.text) for c in captions]
            digest.update(json.dumps([self.clip_ids[index], start, rows]).encode())
        return digest.hexdigest()[:16]


def captions_for_sample(
    captions: Sequence[Caption], kinds: Iterable[str], start_seconds: float, end_seconds: float
) -> dict[str, str]:
    """Kind -> text of the caption that fits a sample of these seconds; kinds without a good caption are left out.

    Of several windows it is the one that overlaps the sample most (`windows.caption_for_window`).

    Args:
        captions: all captions of the clip.
    """
    texts = {}
    for kind in kinds:
        of_kind = [c for c in captions if (c.source if kind == "original" else c.kind) == kind]
        best = caption_for_window(of_kind, start_seconds, end_seconds)
        if best is not None:
            texts[kind] = best.text
    return texts
