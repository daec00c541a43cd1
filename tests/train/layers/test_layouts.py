"""Layouts of a pack: permutations with segments, the same for any sizes, dropped tokens included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stand_ins.packed_inputs import grid_positions
from train.layers.layouts import Layouts
from train.layers.segments import Segments

KEYS = [("frames",), ("places",), ("places", "videos"), ("windows", 2, 3), ("windows", 2, 2, 1, 1)]
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


def group_of(key, position):
    """What tokens of one sample that attend to each other have in common, by hand."""
    frame, row, column = position
    if key == ("frames",):
        return (frame,)
    if key[0] == "places":
        return (row, column)
    height, width, top, left = (*key[1:], 0, 0)[:4]
    return (frame, (row + top) // height, (column + left) // width)


@settings(max_examples=40, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=4), st.sampled_from(KEYS), st.integers(0, 2**16))
def test_a_layout_groups_tokens_and_its_inverse_puts_them_back(grids, key, seed):
    generator = torch.Generator().manual_seed(seed)
    positions = [grid_positions(grid) for grid in grids]
    kept = [position[torch.rand(len(position), generator=generator) < 0.8] for position in positions]
    segments, position_L3 = Segments.from_lengths([len(one) for one in kept]), torch.cat(kept)
    layout = Layouts(segments, position_L3)[key]
    x_LD = torch.arange(len(position_L3) * 2.0).reshape(-1, 2)
    assert torch.equal(layout.scatter(layout.gather(x_LD), x_LD), x_LD)
    is_video = [len(one[:, 0].unique()) > 1 for one in (position_L3.split(segments.lengths))]
    lengths = [n if key[1:] != ("videos",) or several else 0 for n, several in zip(segments.lengths, is_video)]
    assert list(layout.samples.lengths) == lengths
    assert torch.equal(layout.samples.segment_ids_L, layout.gather(segments.segment_ids_L))
    moved = layout.scatter(-layout.gather(x_LD), x_LD)
    is_in_L = torch.tensor([n > 0 for n in lengths])[segments.segment_ids_L]
    assert torch.equal(moved, torch.where(is_in_L[:, None], -x_LD, x_LD))
    assert sum(layout.segments.lengths) == sum(lengths)
    samples, places = layout.gather(segments.segment_ids_L), layout.gather(position_L3)
    groups = [
        {(int(s), group_of(key, p)) for s, p in zip(in_group_s, in_group_p.tolist())}
        for in_group_s, in_group_p in zip(samples.split(layout.segments.lengths), places.split(layout.segments.lengths))
    ]
    assert all(len(group) == 1 for group in groups), "one group per segment"
    assert len(set().union(*groups)) == len(groups), "one segment per group"
    for in_group in layout.gather(torch.arange(len(position_L3))).split(layout.segments.lengths):
        assert in_group.tolist() == sorted(in_group.tolist()), "in the order of the pack"


def test_frames_need_no_permutation_and_windows_at_the_rim_are_smaller():
    layouts = Layouts(Segments.from_lengths([30]), grid_positions((2, 3, 5)))
    assert layouts[("frames",)].index_L is None
    assert layouts[("frames",)].segments.lengths == (15, 15)
    assert layouts[("places",)].segments.lengths == (2,) * 15
    assert layouts[("windows", 2, 2)].segments.lengths == (4, 4, 2, 2, 2, 1) * 2


def test_a_layout_is_built_once_and_moved_and_repeated_with_the_batch():
    segments, position_L3 = (
        Segments.from_lengths([12, 4]),
        torch.cat([grid_positions((3, 2, 2)), grid_positions((1, 2, 2))]),
    )
    layouts = Layouts(segments, position_L3).built(KEYS)
    assert layouts[("places",)] is layouts[("places",)]
    moved = layouts.to("cpu", segments, position_L3)
    assert moved._layouts.keys() == set(KEYS)
    twice = layouts.repeated(2)
    fresh = Layouts(segments.repeated(2), position_L3.repeat(2, 1))
    for key in KEYS:
        assert twice[key].segments.lengths == fresh[key].segments.lengths
        x_LD = torch.randn(32, 3)
        assert torch.equal(twice[key].gather(x_LD), fresh[key].gather(x_LD))
    with pytest.raises(ValueError, match="names no layout"):
        layouts[("spirals",)]
    with pytest.raises(ValueError, match="windows of 0 x 2"):
        layouts[("windows", 0, 2)]


def test_selected_segments_are_those_samples_in_any_order_with_repeats():
    segments = Segments.from_lengths([3, 0, 2])
    for samples in ([2, 0, 0, 1], [1], [], [0, 1, 2]):
        selected, index_L = segments.selected(samples, torch.tensor(samples, dtype=torch.int64))
        expected = Segments.from_lengths([segments.lengths[sample] for sample in samples])
        assert selected.lengths == expected.lengths
        assert torch.equal(selected.cu_seqlens, expected.cu_seqlens)
        assert torch.equal(selected.segment_ids_L, expected.segment_ids_L)
        tokens = [[0, 1, 2], [], [3, 4]]
        assert index_L.tolist() == [token for sample in samples for token in tokens[sample]]
