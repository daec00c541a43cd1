from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import Segment, SegmentRules
from recaption.errors import UsageError

frame_counts = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=60)
"""(frames of tokens, tokens of each)."""
weights = st.lists(
    st.sampled_from(["images=2", "0.5", "1.7", "tokens>90=0@epoch<1", "frames>3=0..1@epoch<3"]), max_size=3
)
frame_limits = st.lists(st.sampled_from(["4", "2@epoch<1", "tokens>100=6"]), max_size=2)
keep_rates = st.lists(st.sampled_from(["0.5", "beta(2,1)", "40/tokens", "0.25..1@epoch<3"]), max_size=2)


def rules(**options: object) -> SegmentRules:
    return SegmentRules.parse(
        **{"sampling_weights": (), "max_latent_frames": (), "token_keep_rate": (), "too_long": "reject"} | options  # type: ignore[arg-type]
    )


def sizes_of(counts: list[tuple[int, int]], patch_frames: int = 1) -> SampleSizes:
    frames, of_frame = np.array(counts).T
    names = [f"clip-{i}" for i in range(len(counts))]
    return SampleSizes(frames * of_frame, num_frames=frames * patch_frames, clip_ids=names, patch_frames=patch_frames)


def sample_segments(
    chosen: SegmentRules,
    sizes: SampleSizes,
    *,
    max_tokens: int = 1000,
    epoch: int = 0,
    sample_indices: np.ndarray | None = None,
) -> tuple[list[Segment], list[int]]:
    sample_indices = np.arange(len(sizes)) if sample_indices is None else sample_indices
    segments, rejected, _ = chosen.sample_segments(
        sizes, sample_indices, max_tokens=max_tokens, seed=0, epoch=epoch, position_epochs=float(epoch)
    )
    return segments.to_list(), rejected.tolist()


def test_without_rules_every_sample_is_one_whole_segment() -> None:
    assert not rules()
    segments, rejected = sample_segments(rules(), sizes_of([(1, 5), (3, 4), (2, 600)]))
    assert segments == [Segment(0, 0, 1, 5, 0), Segment(1, 0, 3, 12, 0)]
    assert rejected == [2]


def test_long_sample_is_split_into_even_parts_that_tile_it() -> None:
    segments, rejected = sample_segments(rules(too_long="split"), sizes_of([(10, 7), (2, 7), (3, 31)]), max_tokens=30)
    assert [s[:4] for s in segments if s.sample == 0] == [(0, 0, 3, 21), (0, 3, 3, 21), (0, 6, 4, 28)]
    assert [s.occurrence for s in segments] == [0, 1, 2, 0]
    assert rejected == [2]  # one frame alone is larger than a pack


@settings(max_examples=150, deadline=None)
@given(
    frame_counts,
    weights,
    frame_limits,
    keep_rates,
    st.sampled_from(["reject", "split"]),
    st.integers(0, 3),
    st.integers(1, 2),
)
def test_segments_fit_and_parts_of_a_split_sample_tile_it(
    counts: list[tuple[int, int]],
    sampling_weights: list[str],
    max_latent_frames: list[str],
    token_keep_rate: list[str],
    too_long: str,
    epoch: int,
    patch_frames: int,
) -> None:
    sizes = sizes_of(counts, patch_frames)
    chosen = rules(
        sampling_weights=sampling_weights,
        max_latent_frames=max_latent_frames,
        token_keep_rate=token_keep_rate,
        too_long=too_long,
    )
    chosen.check(sizes)
    segments, rejected = sample_segments(chosen, sizes, max_tokens=60, epoch=epoch)
    assert segments == sample_segments(chosen, sizes, max_tokens=60, epoch=epoch)[0]
    not_split, _ = sample_segments(
        rules(sampling_weights=sampling_weights, max_latent_frames=max_latent_frames),
        sizes,
        max_tokens=10**6,
        epoch=epoch,
    )  # all appearances
    spans_of, read = defaultdict(list), defaultdict(list)
    for segment in not_split:
        spans_of[segment.sample].append((segment.first_frame, segment.first_frame + segment.num_frames))
    for segment in segments:
        whole = int(sizes.num_tokens[segment.sample]) * segment.num_frames // int(sizes.num_frames[segment.sample])  # type: ignore[index]
        assert 1 <= segment.num_tokens <= min(60, whole)
        assert token_keep_rate or segment.num_tokens == whole
        assert segment.first_frame % patch_frames == segment.num_frames % patch_frames == 0
        read[segment.sample].append((segment.first_frame, segment.first_frame + segment.num_frames))
    names = [(s.sample, s.occurrence) for s in segments]
    assert len(set(names)) == len(names)  # each has random numbers of its own
    for sample, spans in spans_of.items():
        frames = sorted(f for start, end in spans for f in range(start, end))
        if sample not in rejected:
            assert sorted(f for start, end in read[sample] for f in range(start, end)) == frames
        else:
            assert not (chosen.splits_too_long and counts[sample][1] <= 60)


def test_segments_of_a_sample_do_not_depend_on_other_samples() -> None:
    counts = [(i % 9 + 1, i % 7 + 1) for i in range(200)]
    chosen = rules(sampling_weights=["1.6"], max_latent_frames=["3"], token_keep_rate=["beta(2,2)"], too_long="split")
    together, _ = sample_segments(chosen, sizes_of(counts), max_tokens=12)
    some = np.arange(3, 200, 7)
    alone, _ = sample_segments(chosen, sizes_of(counts), max_tokens=12, sample_indices=some)
    assert [s._replace(sample=int(some[s.sample])) for s in alone] == [s for s in together if s.sample in some]


def test_sampling_weights_are_the_expected_repeats_per_epoch() -> None:
    sizes = sizes_of([(1, 5)] * 5000 + [(4, 5)] * 5000)
    segments, _ = sample_segments(rules(sampling_weights=["images=2.5", "videos=0.3"]), sizes)
    repeats = np.bincount([s.sample for s in segments], minlength=10_000)
    assert set(repeats[:5000].tolist()) == {2, 3}
    assert set(repeats[5000:].tolist()) == {0, 1}
    assert abs(repeats[:5000].mean() - 2.5) < 0.03
    assert abs(repeats[5000:].mean() - 0.3) < 0.03
    other, _ = sample_segments(rules(sampling_weights=["images=2.5", "videos=0.3"]), sizes, epoch=1)
    assert repeats.tolist() != np.bincount([s.sample for s in other], minlength=10_000).tolist()


def test_temporal_crops_start_at_random_frames_each_epoch() -> None:
    starts = np.array(
        [
            [
                s.first_frame
                for s in sample_segments(rules(max_latent_frames=["4"]), sizes_of([(7, 2)] * 500), epoch=i)[0]
            ]
            for i in (0, 1)
        ]
    )
    assert set(starts.ravel().tolist()) == {0, 1, 2, 3}
    assert np.bincount(starts.ravel()).min() > 200
    assert (starts[0] != starts[1]).mean() > 0.6
    assert all(
        s.num_frames == 4 and s.num_tokens == 8
        for s in sample_segments(rules(max_latent_frames=["4"]), sizes_of([(7, 2)]))[0]
    )


def test_curriculum_goes_from_images_to_all_samples() -> None:
    sizes = sizes_of([(1, 4), (5, 4), (9, 4)])
    chosen = rules(sampling_weights=["tokens>20=0@epoch<2"], max_latent_frames=["1@epoch<1"])
    assert [[(s.sample, s.num_frames) for s in sample_segments(chosen, sizes, epoch=i)[0]] for i in range(3)] == [
        [(0, 1), (1, 1)],
        [(0, 1), (1, 5)],
        [(0, 1), (1, 5), (2, 9)],
    ]


def test_sample_whose_kept_tokens_fit_is_not_split() -> None:
    sizes = sizes_of([(10, 10)])
    assert [
        s[1:4] for s in sample_segments(rules(token_keep_rate=["0.5"], too_long="split"), sizes, max_tokens=50)[0]
    ] == [(0, 10, 50)]
    assert len(sample_segments(rules(token_keep_rate=["0.6"], too_long="split"), sizes, max_tokens=50)[0]) == 2
    assert sample_segments(rules(token_keep_rate=["0.6"]), sizes, max_tokens=50) == ([], [0])


def test_impossible_rules_are_refused_with_one_clear_sentence() -> None:
    with pytest.raises(UsageError, match="at least 1 latent frame"):
        rules(max_latent_frames=["0"])
    with pytest.raises(UsageError, match="at most 1000 repeats"):
        rules(sampling_weights=["2000"])
    with pytest.raises(UsageError, match="must be one of reject, split"):
        rules(too_long="drop")
    with pytest.raises(UsageError, match="one token is 2 latent frames long"):
        rules(max_latent_frames=["1"]).check(sizes_of([(2, 3)], patch_frames=2))
    for options in ({"too_long": "split"}, {"max_latent_frames": ["3"]}):
        with pytest.raises(UsageError, match="needs the frames of each sample"):
            rules(**options).check(SampleSizes(np.array([5])))
    with pytest.raises(UsageError, match="other strides or another patch"):
        rules(too_long="split").check(SampleSizes(np.array([5]), num_frames=np.array([2])))
