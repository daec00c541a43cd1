"""Condition masks: each kind as named, seeded by key, never on images."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.frame_conditioning import (
    CONDITIONS,
    DEFAULT_CONDITIONS,
    check_trained_for,
    is_trained_for,
    parse_conditions,
    sample_condition_mask,
    sample_frame_mask,
)
from train.layers.segments import Segments


def frames_of(kind: str, num_frames: int = 5, tries: int = 60) -> set[str]:
    """Every pattern of one kind: `xx...` for two conditioning frames of five."""
    masks = [sample_frame_mask({kind: 1.0}, num_frames, 0, epoch, "clip").tolist() for epoch in range(tries)]
    return {"".join(".x"[is_known] for is_known in mask) for mask in masks}


def test_each_kind_masks_the_frames_it_is_named_after():
    assert frames_of("none") == {"....."}
    assert frames_of("first") == {"x...."}
    assert frames_of("prefix") == {"x....", "xx...", "xxx..", "xxxx."}
    assert frames_of("suffix") == {"....x", "...xx", "..xxx", ".xxxx"}
    assert frames_of("both_ends") == {"x...x", "x..xx", "xx..x", "x.xxx", "xx.xx", "xxx.x"}
    assert frames_of("keyframes") == {"x.x.x", "x..x.", "x...x"}
    assert len(frames_of("random")) > 15


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4])
def test_never_all_frames_are_conditioning_frames(kind, num_frames):
    patterns = frames_of(kind, num_frames)
    assert all("." in pattern for pattern in patterns)
    if num_frames == 1:
        assert patterns == {"."}, "images are never conditioning frames"


def test_kinds_are_as_frequent_as_their_weights():
    weights = parse_conditions(("none=6", "first=3", "prefix=1"))
    assert weights == {"none": 0.6, "first": 0.3, "prefix": 0.1}
    patterns = Counter(int(sample_frame_mask(weights, 9, 0, 0, f"clip-{i}").sum()) for i in range(1000))
    assert 540 < patterns[0] < 660
    assert 250 < patterns[1] < 360


def test_the_mask_of_a_clip_does_not_depend_on_the_pack_nor_on_token_dropping():
    weights = parse_conditions(DEFAULT_CONDITIONS)
    ids, shapes = ["a", "b", "c", "d", "e", "f"], [(5, 1, 2), (3, 2, 1), (1, 2, 2), (5, 1, 1), (4, 1, 1), (5, 2, 2)]
    whole = [torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, 3) for shape in shapes]
    dropped = [position_L3[::2] for position_L3 in whole]
    for epoch in range(8):
        packs = [
            _by_frame(
                weights, [ids[i] for i in order], [positions[i] for i in order], [shapes[i][0] for i in order], epoch
            )
            for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4])
            for positions in (whole, dropped)
        ]
        for pack in packs[1:]:
            for clip_id, by_frame in pack.items():
                assert by_frame.items() <= packs[0][clip_id].items()


def _by_frame(weights, ids, positions, num_frames, epoch):
    """clip -> frame -> whether its tokens are conditioning tokens (all alike)."""
    segments = Segments.from_lengths([len(p) for p in positions])
    condition_mask_L = sample_condition_mask(
        weights, ids, segments, torch.cat(positions), [(0, n) for n in num_frames], key=(3, epoch)
    )
    masks = {}
    for clip_id, position_L3, mask_L in zip(ids, positions, condition_mask_L.split(list(segments.lengths))):
        masks[clip_id] = dict(zip(position_L3[:, 0].tolist(), mask_L.tolist()))
        for frame, is_known in zip(position_L3[:, 0].tolist(), mask_L.tolist()):
            assert masks[clip_id][frame] == is_known
    return masks


def test_without_conditions_there_is_no_mask():
    segments = Segments.from_lengths([2])
    positions = torch.tensor([[0, 0, 0], [1, 0, 0]])
    for weights in ({}, {"none": 1.0}):
        assert sample_condition_mask(weights, ["a"], segments, positions, [(0, 2)], key=(0,)) is None


def test_a_later_segment_of_a_clip_is_masked_over_its_own_frames():
    """Its positions start where the segment before it ended."""
    segments, frames = Segments.from_lengths([3]), torch.tensor([4, 5, 6])
    positions = torch.stack([frames, frames * 0, frames * 0], dim=1)
    condition_mask_L = sample_condition_mask({"first": 1.0}, ["a"], segments, positions, [(4, 7)], key=(0,))
    assert condition_mask_L.tolist() == [True, False, False]


def test_invalid_mixes_are_refused():
    for mix in (("prefix",), ("prefix=x",), ("prefix=-1",), ("middle=1",), ("prefix=1", "prefix=1"), ("none=0",)):
        with pytest.raises(UsageError, match="condition"):
            parse_conditions(mix)
    assert parse_conditions(()) == {}


def test_an_untrained_mode_is_refused_with_the_setting_that_trains_it():
    assert is_trained_for("text", ())
    assert is_trained_for("edit", ())
    assert is_trained_for("image", ("none=0.5", "random=0.5"))
    with pytest.raises(
        UsageError, match=r"run/a was not trained for connect .*--train-dit.dit.conditions.* both_ends=0.3"
    ):
        check_trained_for("connect", ("none=0.5", "prefix=0.5"), "run/a")
    for mode in ("image", "extend", "extend-back", "connect", "loop", "inbetween"):
        assert is_trained_for(mode, DEFAULT_CONDITIONS)
        assert not is_trained_for(mode, ())
