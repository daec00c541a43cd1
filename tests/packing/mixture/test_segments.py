from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.mixture.sample_sizes import SampleSizes
from packing.mixture.segments import Excerpt, ExcerptRules
from recaption.errors import UsageError

frame_counts = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=60)
"""(frames of tokens, tokens of each)."""
mixes = st.lists(
    st.sampled_from(["images=2", "0.5", "1.7", "tokens>90=0@epoch<1", "frames>3=0..1@epoch<3"]), max_size=3
)
limits = st.lists(st.sampled_from(["4", "2@epoch<1", "tokens>100=6"]), max_size=2)
keeps = st.lists(st.sampled_from(["0.5", "beta(2,1)", "40/tokens", "0.25..1@epoch<3"]), max_size=2)


def rules(**options: object) -> ExcerptRules:
    return ExcerptRules.parse(**{"mix": (), "max_frames": (), "keep": (), "too_long": "reject"} | options)  # type: ignore[arg-type]


def sizes_of(counts: list[tuple[int, int]], patch_frames: int = 1) -> SampleSizes:
    frames, of_frame = np.array(counts).T
    names = [f"clip-{i}" for i in range(len(counts))]
    return SampleSizes(frames * of_frame, num_frames=frames * patch_frames, clip_ids=names, patch_frames=patch_frames)


def draw(
    given: ExcerptRules, sizes: SampleSizes, *, longest: int = 1000, epoch: int = 0, at: np.ndarray | None = None
) -> tuple[list[Excerpt], list[int]]:
    at = np.arange(len(sizes)) if at is None else at
    excerpts, rejected, _ = given.draw(sizes, at, longest=longest, seed=0, epoch=epoch, position=float(epoch))
    return excerpts.each(), rejected.tolist()


def test_without_rules_every_sample_is_whole_and_there_once() -> None:
    assert not rules()
    excerpts, rejected = draw(rules(), sizes_of([(1, 5), (3, 4), (2, 600)]))
    assert excerpts == [Excerpt(0, 0, 1, 5, 0), Excerpt(1, 0, 3, 12, 0)]
    assert rejected == [2]


def test_a_long_sample_is_split_into_even_pieces_that_tile_it() -> None:
    excerpts, rejected = draw(rules(too_long="split"), sizes_of([(10, 7), (2, 7), (3, 31)]), longest=30)
    assert [e[:4] for e in excerpts if e.sample == 0] == [(0, 0, 3, 21), (0, 3, 3, 21), (0, 6, 4, 28)]
    assert [e.number for e in excerpts] == [0, 1, 2, 0]
    assert rejected == [2]  # one frame alone is larger than a pack


@settings(max_examples=150, deadline=None)
@given(frame_counts, mixes, limits, keeps, st.sampled_from(["reject", "split"]), st.integers(0, 3), st.integers(1, 2))
def test_no_excerpt_is_too_large_and_no_piece_lost_or_doubled(
    counts: list[tuple[int, int]],
    mix: list[str],
    max_frames: list[str],
    keep: list[str],
    too_long: str,
    epoch: int,
    patch_frames: int,
) -> None:
    sizes = sizes_of(counts, patch_frames)
    chosen = rules(mix=mix, max_frames=max_frames, keep=keep, too_long=too_long)
    chosen.check(sizes)
    excerpts, rejected = draw(chosen, sizes, longest=60, epoch=epoch)
    assert excerpts == draw(chosen, sizes, longest=60, epoch=epoch)[0]
    uncut, _ = draw(rules(mix=mix, max_frames=max_frames), sizes, longest=10**6, epoch=epoch)  # all appearances
    appearances, shown = defaultdict(list), defaultdict(list)
    for excerpt in uncut:
        appearances[excerpt.sample].append((excerpt.first_frame, excerpt.first_frame + excerpt.num_frames))
    for excerpt in excerpts:
        whole = int(sizes.num_tokens[excerpt.sample]) * excerpt.num_frames // int(sizes.num_frames[excerpt.sample])  # type: ignore[index]
        assert 1 <= excerpt.num_tokens <= min(60, whole)
        assert keep or excerpt.num_tokens == whole
        assert excerpt.first_frame % patch_frames == excerpt.num_frames % patch_frames == 0
        shown[excerpt.sample].append((excerpt.first_frame, excerpt.first_frame + excerpt.num_frames))
    names = [(e.sample, e.number) for e in excerpts]
    assert len(set(names)) == len(names)  # each has draws of its own
    for sample, spans in appearances.items():
        frames = sorted(f for start, end in spans for f in range(start, end))
        if sample not in rejected:
            assert sorted(f for start, end in shown[sample] for f in range(start, end)) == frames
        else:
            assert not (chosen.splits and counts[sample][1] <= 60)


def test_what_is_shown_of_a_sample_hangs_on_no_other() -> None:
    counts = [(i % 9 + 1, i % 7 + 1) for i in range(200)]
    chosen = rules(mix=["1.6"], max_frames=["3"], keep=["beta(2,2)"], too_long="split")
    together, _ = draw(chosen, sizes_of(counts), longest=12)
    some = np.arange(3, 200, 7)
    alone, _ = draw(chosen, sizes_of(counts), longest=12, at=some)
    assert [e._replace(sample=int(some[e.sample])) for e in alone] == [e for e in together if e.sample in some]


def test_weights_are_the_expected_appearances() -> None:
    sizes = sizes_of([(1, 5)] * 5000 + [(4, 5)] * 5000)
    excerpts, _ = draw(rules(mix=["images=2.5", "videos=0.3"]), sizes)
    often = np.bincount([e.sample for e in excerpts], minlength=10_000)
    assert set(often[:5000].tolist()) == {2, 3}
    assert set(often[5000:].tolist()) == {0, 1}
    assert abs(often[:5000].mean() - 2.5) < 0.03
    assert abs(often[5000:].mean() - 0.3) < 0.03
    other, _ = draw(rules(mix=["images=2.5", "videos=0.3"]), sizes, epoch=1)
    assert often.tolist() != np.bincount([e.sample for e in other], minlength=10_000).tolist()


def test_windows_start_anywhere_each_epoch_anew() -> None:
    starts = np.array(
        [[e.first_frame for e in draw(rules(max_frames=["4"]), sizes_of([(7, 2)] * 500), epoch=i)[0]] for i in (0, 1)]
    )
    assert set(starts.ravel().tolist()) == {0, 1, 2, 3}
    assert np.bincount(starts.ravel()).min() > 200
    assert (starts[0] != starts[1]).mean() > 0.6
    assert all(e.num_frames == 4 and e.num_tokens == 8 for e in draw(rules(max_frames=["4"]), sizes_of([(7, 2)]))[0])


def test_a_curriculum_goes_from_images_to_everything() -> None:
    sizes = sizes_of([(1, 4), (5, 4), (9, 4)])
    chosen = rules(mix=["tokens>20=0@epoch<2"], max_frames=["1@epoch<1"])
    assert [[(e.sample, e.num_frames) for e in draw(chosen, sizes, epoch=i)[0]] for i in range(3)] == [
        [(0, 1), (1, 1)],
        [(0, 1), (1, 5)],
        [(0, 1), (1, 5), (2, 9)],
    ]


def test_a_sample_whose_kept_tokens_fit_stays_whole() -> None:
    sizes = sizes_of([(10, 10)])
    assert [e[1:4] for e in draw(rules(keep=["0.5"], too_long="split"), sizes, longest=50)[0]] == [(0, 10, 50)]
    assert len(draw(rules(keep=["0.6"], too_long="split"), sizes, longest=50)[0]) == 2
    assert draw(rules(keep=["0.6"]), sizes, longest=50) == ([], [0])


def test_rules_that_cannot_be_followed_are_one_clear_sentence() -> None:
    with pytest.raises(UsageError, match="at least 1 latent frame"):
        rules(max_frames=["0"])
    with pytest.raises(UsageError, match="at most 1000 appearances"):
        rules(mix=["2000"])
    with pytest.raises(UsageError, match="must be one of reject, split"):
        rules(too_long="drop")
    with pytest.raises(UsageError, match="one token is 2 latent frames long"):
        rules(max_frames=["1"]).check(sizes_of([(2, 3)], patch_frames=2))
    for options in ({"too_long": "split"}, {"max_frames": ["3"]}):
        with pytest.raises(UsageError, match="needs the frames of each sample"):
            rules(**options).check(SampleSizes(np.array([5])))
    with pytest.raises(UsageError, match="other strides or another patch"):
        rules(too_long="split").check(SampleSizes(np.array([5]), num_frames=np.array([2])))
