"""Which frames a clip shows clean while training: each kind as it says, drawn by key, never on images."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.frame_conditioning import (
    CONDITIONS,
    DEFAULT_MIX,
    check_trained_for,
    draw_frames,
    draw_given,
    is_trained_for,
    parse_conditions,
)
from train.layers.segments import Segments


def frames_of(kind: str, num_frames: int = 5, tries: int = 60) -> set[str]:
    """Every pattern that one kind gives: `xx...` for two given frames of five."""
    drawn = [draw_frames({kind: 1.0}, num_frames, 0, epoch, "clip").tolist() for epoch in range(tries)]
    return {"".join(".x"[given] for given in frames) for frames in drawn}


def test_each_kind_gives_the_frames_it_is_named_after():
    assert frames_of("none") == {"....."}
    assert frames_of("first") == {"x...."}
    assert frames_of("head") == {"x....", "xx...", "xxx..", "xxxx."}
    assert frames_of("tail") == {"....x", "...xx", "..xxx", ".xxxx"}
    assert frames_of("ends") == {"x...x", "x..xx", "xx..x", "x.xxx", "xx.xx", "xxx.x"}
    assert frames_of("keyframes") == {"x.x.x", "x..x.", "x...x"}
    assert len(frames_of("random")) > 15


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4])
def test_something_is_always_left_to_learn(kind, num_frames):
    patterns = frames_of(kind, num_frames)
    assert all("." in pattern for pattern in patterns)
    if num_frames == 1:
        assert patterns == {"."}, "images are never given"


def test_kinds_come_as_often_as_their_shares_say():
    shares = parse_conditions(("none=6", "first=3", "head=1"))
    assert shares == {"none": 0.6, "first": 0.3, "head": 0.1}
    patterns = Counter(int(draw_frames(shares, 9, 0, 0, f"clip-{i}").sum()) for i in range(1000))
    assert 540 < patterns[0] < 660
    assert 250 < patterns[1] < 360


def test_a_clip_draws_the_same_in_any_row_and_with_tokens_missing():
    shares = parse_conditions(DEFAULT_MIX)
    ids, shapes = ["a", "b", "c", "d", "e", "f"], [(5, 1, 2), (3, 2, 1), (1, 2, 2), (5, 1, 1), (4, 1, 1), (5, 2, 2)]
    whole = [torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, 3) for shape in shapes]
    kept = [position_L3[::2] for position_L3 in whole]
    for epoch in range(8):
        rows = [
            _by_frame(
                shares, [ids[i] for i in order], [positions[i] for i in order], [shapes[i][0] for i in order], epoch
            )
            for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4])
            for positions in (whole, kept)
        ]
        for row in rows[1:]:
            for clip_id, by_frame in row.items():
                assert by_frame.items() <= rows[0][clip_id].items()


def _by_frame(shares, ids, positions, num_frames, epoch):
    """clip -> frame -> whether its tokens are given (all alike)."""
    segments = Segments.from_lengths([len(p) for p in positions])
    given_L = draw_given(shares, ids, segments, torch.cat(positions), [(0, n) for n in num_frames], key=(3, epoch))
    found = {}
    for clip_id, position_L3, given in zip(ids, positions, given_L.split(list(segments.lengths))):
        found[clip_id] = dict(zip(position_L3[:, 0].tolist(), given.tolist()))
        for frame, one in zip(position_L3[:, 0].tolist(), given.tolist()):
            assert found[clip_id][frame] == one
    return found


def test_without_conditions_nothing_is_drawn():
    segments = Segments.from_lengths([2])
    positions = torch.tensor([[0, 0, 0], [1, 0, 0]])
    for shares in ({}, {"none": 1.0}):
        assert draw_given(shares, ["a"], segments, positions, [(0, 2)], key=(0,)) is None


def test_the_later_part_of_a_clip_draws_over_its_own_frames():
    """Its positions go on where the part before it ended."""
    segments, frames = Segments.from_lengths([3]), torch.tensor([4, 5, 6])
    positions = torch.stack([frames, frames * 0, frames * 0], dim=1)
    given_L = draw_given({"first": 1.0}, ["a"], segments, positions, [(4, 7)], key=(0,))
    assert given_L.tolist() == [True, False, False]


def test_wrong_mixes_get_one_sentence():
    for mix in (("head",), ("head=x",), ("head=-1",), ("middle=1",), ("head=1", "head=1"), ("none=0",)):
        with pytest.raises(UsageError, match="condition"):
            parse_conditions(mix)
    assert parse_conditions(()) == {}


def test_a_kind_of_prompt_that_was_not_trained_names_the_setting_that_trains_it():
    assert is_trained_for("text", ())
    assert is_trained_for("edit", ())
    assert is_trained_for("image", ("none=0.5", "random=0.5"))
    with pytest.raises(UsageError, match=r"run/a was not trained for connect .*--train-dit.dit.conditions.* ends=0.3"):
        check_trained_for("connect", ("none=0.5", "head=0.5"), "run/a")
    for mode in ("image", "extend", "extend-back", "connect", "loop", "inbetween"):
        assert is_trained_for(mode, DEFAULT_MIX)
        assert not is_trained_for(mode, ())
