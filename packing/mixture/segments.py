"""Segments: a segment is a temporal crop of one sample's latent, and the unit that is packed.

    rules = SegmentRules.parse(
        sampling_weights=("images=2",), max_latent_frames=("5",), token_keep_rate=("0.5",), too_long="split"
    )
    epoch_segments = rules.sample_segments(
        sizes, sample_indices, max_tokens=4096, seed=0, epoch=3, position_epochs=3.0
    )
    epoch_segments.segments, epoch_segments.too_long

A segment is (sample, first latent frame, number of latent frames, tokens that are kept). An epoch makes none, one or several
of a sample: `sampling_weights` repeat it, `max_latent_frames` crops each repeat from a random start, tokens are dropped
(`token_dropping`), and what still exceeds a pack is rejected or split. All random numbers depend on (seed, epoch, clip id).

Latents of a causal compressor are cropped, not pixels: the first latent frame of a sample encodes 1 frame of video and each
later one encodes 4 (`Grid.frame_stride`) and has seen the frames before. So a segment that starts later is a part of the
sample's latent, but differs from the latent of those frames alone: its first latent frame contains motion. Its tokens keep
their frame positions in the whole sample, so that a model with absolute positions can tell it from an image (rotary
positions only see differences). The parts of a split sample tile it and are as equal as whole frames allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from packing.mixture.rules import Rule, parse_rule
from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.token_dropping import num_kept_tokens, parse_token_keep_rates, token_keep_rates
from packing.mixture.weights import parse_sampling_weights, repeat_counts
from recaption.errors import UsageError
from recaption.rng import fold_in, sample_uniform

TOO_LONG = ("reject", "split")


class Segment(NamedTuple):
    """One temporal crop of one sample."""

    sample: int
    first_frame: int
    """In latent frames of the sample, like `num_frames`."""
    num_frames: int
    """0: all of them, where only token counts are known."""
    num_tokens: int
    """Without dropped ones."""
    occurrence: int
    """Counts the segments of this sample in one epoch, from 0."""


@dataclass(frozen=True)
class Segments:
    """E segments as int64 arrays (E), one per field of `Segment`."""

    sample: np.ndarray
    first_frame: np.ndarray
    num_frames: np.ndarray
    num_tokens: np.ndarray
    occurrence: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, indices: np.ndarray | slice) -> Segments:
        return Segments(*(values[indices] for values in self.arrays()))

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.sample, self.first_frame, self.num_frames, self.num_tokens, self.occurrence

    def to_list(self) -> list[Segment]:
        return [Segment(*values) for values in zip(*(array.tolist() for array in self.arrays()), strict=True)]

    @classmethod
    def concat(cls, parts: Iterable[Segments]) -> Segments:
        return cls(*(np.concatenate(arrays) for arrays in zip(*(part.arrays() for part in parts), strict=True)))

    @classmethod
    def whole(cls, sizes: SampleSizes, sample_indices: np.ndarray) -> Segments:
        """One segment per sample: all frames, all tokens."""
        zeros = np.zeros(len(sample_indices), np.int64)
        frames = zeros if sizes.num_frames is None else sizes.num_frames[sample_indices].astype(np.int64)
        return cls(sample_indices, zeros, frames, sizes.num_tokens[sample_indices].astype(np.int64), zeros)


class EpochSegments(NamedTuple):
    """The segments of one epoch. `sample` and all indices count within the `sample_indices` they were made for."""

    segments: Segments
    """Ascending by sample."""
    too_long: np.ndarray
    """Samples with a segment that exceeds a pack and was rejected; ascending."""
    by_rule: dict[str, np.ndarray]
    """Effect of the rules -> samples, ascending: `left_out` (0 repeats), `repeated`, `cut` to fewer frames, `split`,
    `dropped` some of their tokens."""


@dataclass(frozen=True)
class SegmentRules:
    """The parsed rules of `PlanSettings`; falsy where every epoch is every sample once and whole."""

    sampling_weights: tuple[Rule, ...]
    max_latent_frames: tuple[Rule, ...]
    token_keep_rate: tuple[Rule, ...]
    splits_too_long: bool

    @classmethod
    def parse(
        cls,
        *,
        sampling_weights: Iterable[str],
        max_latent_frames: Iterable[str],
        token_keep_rate: Iterable[str],
        too_long: str,
    ) -> SegmentRules:
        """Raises UsageError where a rule is malformed, or allows less than one frame."""
        if too_long not in TOO_LONG:
            raise UsageError(f"{too_long = } must be one of {', '.join(TOO_LONG)}")
        frame_limits = tuple(parse_rule(rule) for rule in max_latent_frames)
        for rule in frame_limits:
            assert rule.schedule is not None
            if min(rule.schedule.first, rule.schedule.last) < 1:
                raise UsageError(f"rule {rule.text!r}: the limit is at least 1 latent frame")
        return cls(
            parse_sampling_weights(sampling_weights),
            frame_limits,
            parse_token_keep_rates(token_keep_rate),
            too_long == "split",
        )

    def __bool__(self) -> bool:
        return bool(self.sampling_weights or self.max_latent_frames or self.token_keep_rate or self.splits_too_long)

    @property
    def crops_in_time(self) -> bool:
        """Whether a segment may have fewer frames than its sample."""
        return bool(self.max_latent_frames or self.splits_too_long)

    def check(self, sizes: SampleSizes) -> None:
        """Raises UsageError where a rule needs a field that `sizes` lacks, or names a bucket without samples."""
        no_samples = np.zeros(0, np.int64)
        for rule in (*self.sampling_weights, *self.max_latent_frames, *self.token_keep_rate):
            rule.matches(sizes, no_samples)
        for rule in self.max_latent_frames:
            assert rule.schedule is not None
            if min(rule.schedule.first, rule.schedule.last) < sizes.patch_frames:
                raise UsageError(f"rule {rule.text!r}: one token is {sizes.patch_frames} latent frames long")
        if self.crops_in_time:
            sizes.require_num_frames("max_latent_frames" if self.max_latent_frames else "too_long=split")
        sizes.check_frames()

    def sample_segments(
        self,
        sizes: SampleSizes,
        sample_indices: np.ndarray,
        *,
        max_tokens: int,
        seed: int,
        epoch: int,
        position_epochs: float,
    ) -> EpochSegments:
        """The segments that one epoch makes of these samples.

        Args:
            max_tokens: of a segment; longer ones are split or rejected.
            position_epochs: epochs since the start of training, with a fraction: what schedules depend on.
        """
        counts = repeat_counts(
            self.sampling_weights, sizes, sample_indices, seed=seed, epoch=epoch, position_epochs=position_epochs
        )
        sample = np.repeat(np.arange(len(sample_indices)), counts)
        repeat = _index_within_runs(sample)
        of_sample = sample_indices[sample]
        keys = fold_in(sizes.keys[of_sample], repeat)
        whole = Segments.whole(sizes, of_sample)
        first, frames, tokens = whole.first_frame, whole.num_frames, whole.num_tokens
        if self.max_latent_frames:
            cropped = np.minimum(frames, self._max_frames_of(sizes, of_sample, position_epochs))
            tokens = tokens * cropped // frames
            num_starts = (frames - cropped) // sizes.patch_frames + 1
            start = (sample_uniform(keys, seed, epoch, "first frame") * num_starts).astype(np.int64)
            first, frames = np.minimum(start, num_starts - 1) * sizes.patch_frames, cropped
        kept, keep_rates = tokens, np.ones(len(sample))
        if self.token_keep_rate:
            keep_rates = token_keep_rates(
                self.token_keep_rate,
                sizes,
                of_sample,
                tokens,
                keys,
                seed=seed,
                epoch=epoch,
                position_epochs=position_epochs,
            )
            kept = num_kept_tokens(tokens, keep_rates)
        segments = Segments(sample, first, frames, kept, repeat)
        num_parts = self._num_parts(segments, tokens, max_tokens, sizes.patch_frames)
        by_rule = {
            "left_out": np.flatnonzero(counts == 0),
            "repeated": np.flatnonzero(counts > 1),
            "cut": np.unique(sample[frames < whole.num_frames]),
            "split": np.unique(sample[num_parts > 1]),
            "dropped": np.unique(sample[kept < tokens]),
        }
        too_long = np.unique(sample[num_parts == 0])
        if len(by_rule["split"]):
            segments = _split_segments(segments, num_parts, tokens, keep_rates, sizes.patch_frames)
        elif len(too_long):
            segments = segments[num_parts == 1]
        return EpochSegments(segments, too_long, {rule: samples for rule, samples in by_rule.items() if len(samples)})

    def _num_parts(self, segments: Segments, tokens: np.ndarray, max_tokens: int, patch_frames: int) -> np.ndarray:
        """int64: parts that each segment is split into: 1 where it fits, 0 where it is rejected.

        Args:
            tokens: of each segment, dropped ones included.
        """
        is_long = segments.num_tokens > max_tokens
        num_parts = np.where(is_long, 0, 1)
        if self.splits_too_long and is_long.any():
            token_frames = segments.num_frames // patch_frames
            frames_per_part = max_tokens // (tokens // token_frames)  # counts dropped tokens too, so that any part fits
            ceil = -(-token_frames // np.maximum(1, frames_per_part))
            num_parts = np.where(is_long & (frames_per_part > 0), ceil, num_parts)
        return num_parts

    def _max_frames_of(self, sizes: SampleSizes, sample_indices: np.ndarray, position_epochs: float) -> np.ndarray:
        """int64: the limit of latent frames for each of these samples, a multiple of the patch."""
        limits = np.full(len(sample_indices), np.iinfo(np.int64).max)
        for rule in self.max_latent_frames:
            if rule.is_active(position_epochs):
                matches = rule.matches(sizes, sample_indices)
                chosen = slice(None) if matches is None else matches
                limits[chosen] = np.minimum(limits[chosen], int(rule.value_at(position_epochs)))
        return limits // sizes.patch_frames * sizes.patch_frames


def _index_within_runs(sample: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal neighbours."""
    if not len(sample):
        return np.zeros(0, np.int64)
    is_first = np.concatenate([[True], sample[1:] != sample[:-1]])
    starts = np.flatnonzero(is_first)
    return np.arange(len(sample)) - np.repeat(starts, np.diff(np.append(starts, len(sample))))


def _split_segments(
    segments: Segments, num_parts: np.ndarray, tokens: np.ndarray, keep_rates: np.ndarray, patch_frames: int
) -> Segments:
    """Each segment as `num_parts` segments that tile it; rejected where that is 0."""
    parent = np.repeat(np.arange(len(num_parts)), num_parts)
    part, count = _index_within_runs(parent), num_parts[parent]
    token_frames = segments.num_frames[parent] // patch_frames
    start, end = token_frames * part // count, token_frames * (part + 1) // count
    part_tokens = tokens[parent] // token_frames * (end - start)
    sample = segments.sample[parent]
    return Segments(
        sample,
        segments.first_frame[parent] + start * patch_frames,
        (end - start) * patch_frames,
        num_kept_tokens(part_tokens, keep_rates[parent]),
        _index_within_runs(sample),
    )
