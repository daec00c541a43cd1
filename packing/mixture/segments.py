"""What an epoch shows of each sample: between the samples and the packs stands the excerpt.

    rules = ExcerptRules.parse(mix=("images=2",), max_frames=("5",), keep=("0.5",), too_long="split")
    excerpts, too_long, _ = rules.draw(sizes, at, longest=4096, seed=0, epoch=3, position=3.0)

An excerpt is (sample, first latent frame, number of latent frames, tokens that are kept). A sample has none in an epoch, one
or several: the mix decides how often it appears (`mix`), a limit of frames cuts an appearance to a stretch that starts
anywhere in the sample, tokens are dropped (`token_dropping`), and what is then still larger than a pack is rejected or
split. Packs are planned from the tokens of excerpts; everything drawn hangs on (seed, epoch, clip id).

Cut in time, what does that mean? Latents of a causal compressor are cut, not pixels: the first latent frame of a sample
stands for 1 frame of video and each later one for 4 (`Grid.frame_stride`), encoded with what came before in view. So an
excerpt that starts later is a true piece of latents, but not what encoding those frames alone would give: its first
latent frame holds motion. Its tokens keep the frame numbers they have in the whole sample, so that an image and a later
moment are not taken for the same by a model that knows absolute positions (rotary ones see only differences).
The pieces of a split sample are as equal as whole frames allow and tile the sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from packing.mixture.rng import numbered_keys, uniforms
from packing.mixture.rules import Rule, parse_rule
from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.token_dropping import kept_shares, num_kept, parse_keep
from packing.mixture.weights import appearances, parse_mix
from recaption.errors import UsageError

TOO_LONG = ("reject", "split")


class Excerpt(NamedTuple):
    """What is shown of one sample at a time."""

    sample: int
    first_frame: int
    """In latent frames of the sample, like `num_frames`."""
    num_frames: int
    """0: all, where the plan was made from token counts alone."""
    num_tokens: int
    """Kept."""
    number: int
    """Counts the excerpts that one epoch shows of one sample, from 0."""


@dataclass(frozen=True)
class Excerpts:
    """Many of them, E in all, each field an int64 array."""

    sample: np.ndarray
    first_frame: np.ndarray
    num_frames: np.ndarray
    num_tokens: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, places: np.ndarray | slice) -> Excerpts:
        return Excerpts(*(values[places] for values in self.arrays()))

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.sample, self.first_frame, self.num_frames, self.num_tokens, self.number

    def each(self) -> list[Excerpt]:
        return [Excerpt(*values) for values in zip(*(array.tolist() for array in self.arrays()), strict=True)]

    @classmethod
    def joined(cls, parts: Iterable[Excerpts]) -> Excerpts:
        return cls(*(np.concatenate(arrays) for arrays in zip(*(part.arrays() for part in parts), strict=True)))

    @classmethod
    def whole(cls, sizes: SampleSizes, at: np.ndarray) -> Excerpts:
        """Samples as they are."""
        none = np.zeros(len(at), np.int64)
        frames = none if sizes.num_frames is None else sizes.num_frames[at].astype(np.int64)
        return cls(at, none, frames, sizes.num_tokens[at].astype(np.int64), none)


class Drawn(NamedTuple):
    """What the rules make of some samples in one epoch. Places are among the samples asked for, ascending."""

    excerpts: Excerpts
    """Ascending by sample, which is a place too."""
    too_long: np.ndarray
    """Places of the samples of which nothing, or not every appearance, fits."""
    by_rule: dict[str, np.ndarray]
    """What was done -> places of the samples: `left_out` by the mix, `repeated` by it, `cut` to fewer frames, `split`,
    `dropped` some of their tokens."""


@dataclass(frozen=True)
class ExcerptRules:
    """The four settings that make an epoch something else than every sample once and whole."""

    mix: tuple[Rule, ...]
    max_frames: tuple[Rule, ...]
    keep: tuple[Rule, ...]
    splits: bool

    @classmethod
    def parse(
        cls, *, mix: Iterable[str], max_frames: Iterable[str], keep: Iterable[str], too_long: str
    ) -> ExcerptRules:
        """Raises UsageError where a rule is none, or asks for less than a frame."""
        if too_long not in TOO_LONG:
            raise UsageError(f"{too_long = } must be one of {', '.join(TOO_LONG)}")
        limits = tuple(parse_rule(rule) for rule in max_frames)
        for rule in limits:
            assert rule.number is not None
            if min(rule.number.first, rule.number.last) < 1:
                raise UsageError(f"rule {rule.text!r}: a sample shows at least 1 latent frame")
        return cls(parse_mix(mix), limits, parse_keep(keep), too_long == "split")

    def __bool__(self) -> bool:
        """Whether anything but whole samples, each once, may come."""
        return bool(self.mix or self.max_frames or self.keep or self.splits)

    @property
    def cuts(self) -> bool:
        """Whether samples may be shown in part of their time."""
        return bool(self.max_frames or self.splits)

    def check(self, sizes: SampleSizes) -> None:
        """Raises UsageError where a rule needs what is not known of these samples, or names a bucket without any."""
        nothing = np.zeros(0, np.int64)
        for rule in (*self.mix, *self.max_frames, *self.keep):
            rule.matches(sizes, nothing)
        for rule in self.max_frames:
            assert rule.number is not None
            if min(rule.number.first, rule.number.last) < sizes.patch_frames:
                raise UsageError(f"rule {rule.text!r}: one token is {sizes.patch_frames} latent frames long")
        if self.max_frames or self.splits:
            sizes.frames("max_frames" if self.max_frames else "too_long=split")
        sizes.check_frames()

    def draw(
        self, sizes: SampleSizes, at: np.ndarray, *, longest: int, seed: int, epoch: int, position: float
    ) -> Drawn:
        """What an epoch shows of the samples `at` these places.

        Args:
            longest: tokens that an excerpt may have.
            position: in epochs since the start of training; rules go by it.
        """
        times = appearances(self.mix, sizes, at, seed=seed, epoch=epoch, position=position)
        sample = np.repeat(np.arange(len(at)), times)
        appearance = _running(sample)
        keys = numbered_keys(sizes.keys[at[sample]], appearance)
        whole = Excerpts.whole(sizes, at[sample])
        first, frames, tokens = whole.first_frame, whole.num_frames, whole.num_tokens
        if self.max_frames:
            shown = np.minimum(frames, self._limits(sizes, at[sample], position))
            tokens = tokens * shown // frames
            starts = (frames - shown) // sizes.patch_frames + 1
            start = (uniforms(keys, seed, epoch, "first frame") * starts).astype(np.int64)
            first, frames = np.minimum(start, starts - 1) * sizes.patch_frames, shown
        kept, shares = tokens, np.ones(len(sample))
        if self.keep:
            shares = kept_shares(self.keep, sizes, at[sample], tokens, keys, seed=seed, epoch=epoch, position=position)
            kept = num_kept(tokens, shares)
        excerpts = Excerpts(sample, first, frames, kept, appearance)
        is_long = kept > longest
        pieces = np.where(is_long, 0, 1)
        if self.splits and is_long.any():
            units = frames // sizes.patch_frames
            fitting = longest // (tokens // units)  # frames of tokens that a piece may have
            pieces = np.where(is_long & (fitting > 0), -(-units // np.maximum(1, fitting)), pieces)
        by_rule = {
            "left_out": np.flatnonzero(times == 0),
            "repeated": np.flatnonzero(times > 1),
            "cut": np.unique(sample[frames < whole.num_frames]),
            "split": np.unique(sample[pieces > 1]),
            "dropped": np.unique(sample[kept < tokens]),
        }
        too_long = np.unique(sample[pieces == 0])
        if len(by_rule["split"]):
            excerpts = _split(excerpts, pieces, tokens, shares, sizes.patch_frames)
        elif len(too_long):
            excerpts = excerpts[pieces == 1]
        return Drawn(excerpts, too_long, {rule: places for rule, places in by_rule.items() if len(places)})

    def _limits(self, sizes: SampleSizes, at: np.ndarray, position: float) -> np.ndarray:
        """int64: most latent frames that each of the samples `at` these places may show."""
        limits = np.full(len(at), np.iinfo(np.int64).max)
        for rule in self.max_frames:
            if rule.holds(position):
                matches = rule.matches(sizes, at)
                chosen = slice(None) if matches is None else matches
                limits[chosen] = np.minimum(limits[chosen], int(rule.number_at(position)))
        return limits // sizes.patch_frames * sizes.patch_frames


def _running(sample: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal neighbours."""
    if not len(sample):
        return np.zeros(0, np.int64)
    is_first = np.concatenate([[True], sample[1:] != sample[:-1]])
    starts = np.flatnonzero(is_first)
    return np.arange(len(sample)) - np.repeat(starts, np.diff(np.append(starts, len(sample))))


def _split(
    excerpts: Excerpts, pieces: np.ndarray, tokens: np.ndarray, shares: np.ndarray, patch_frames: int
) -> Excerpts:
    """Each excerpt as so many pieces, which tile it; none where that is 0."""
    of = np.repeat(np.arange(len(pieces)), pieces)
    piece, count = _running(of), pieces[of]
    units = excerpts.num_frames[of] // patch_frames
    start, end = units * piece // count, units * (piece + 1) // count
    piece_tokens = tokens[of] // units * (end - start)
    sample = excerpts.sample[of]
    return Excerpts(
        sample,
        excerpts.first_frame[of] + start * patch_frames,
        (end - start) * patch_frames,
        num_kept(piece_tokens, shares[of]),
        _running(sample),
    )
