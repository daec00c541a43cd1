"""Frames are numbered by packets, and only where packets can be trusted to number them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest

from recaption.decoding.damage.trim import Damage
from recaption.decoding.orientation import Orientation
from recaption.decoding.packet_index import FrameTimes, Keyframe, PacketIndex, is_hidden, read_packets
from recaption.errors import VideoError


@dataclass(frozen=True)
class Packet:
    """The fields of av.Packet that an index is made of."""

    pts: int | None
    dts: int | None
    is_keyframe: bool = False
    is_discard: bool = False
    is_corrupt: bool = False
    size: int = 100


def index_of(packets: list[Packet], *, format_name: str = "mov,mp4,m4a", max_frames: int = 1000) -> PacketIndex:
    return read_packets(
        packets, format_name=format_name, codec="h264", time_base=Fraction(1, 30), max_frames=max_frames
    )


B_FRAMES = [Packet(0, -1, is_keyframe=True), Packet(3, 0), Packet(1, 1), Packet(2, 2)]
"""One GOP in decode order: I0 P3 B1 B2."""


def gops(num_frames: int = 30, gop_size: int = 12) -> list[Packet]:
    """Frames without reordering; keyframes 0, 12 and 24."""
    return [Packet(n, n, is_keyframe=n % gop_size == 0) for n in range(num_frames)]


def test_packets_in_decode_order_number_frames_in_display_order():
    index = index_of(B_FRAMES)
    assert index.ticks.tolist() == [0, 1, 2, 3]
    assert index.is_seekable
    assert (index.num_packets, index.num_stored) == (4, 4)
    assert index.seconds == pytest.approx(0.1)


def test_hidden_preroll_of_an_edit_list_is_not_numbered_but_decoded_from():
    preroll = [Packet(-2, -2, is_keyframe=True, is_discard=True), Packet(-1, -1, is_discard=True)]
    index = index_of([*preroll, Packet(0, 0), Packet(1, 1), Packet(2, 2, is_keyframe=True)])
    assert index.ticks.tolist() == [0, 1, 2]
    assert (index.num_packets, index.num_stored) == (3, 5)
    assert index.keyframes == (Keyframe(-2, -2, 0), Keyframe(2, 2, 4))
    assert index.keyframe_before(1) is None


@pytest.mark.parametrize(
    ("packets", "format_name"),
    [
        (gops(), "avi"),
        ([*gops(3), Packet(2, 3)], "mov"),
        ([*gops(3), Packet(None, 3)], "mov"),
        ([*gops(3), Packet(3, 0)], "mov"),
        ([replace(packet, is_keyframe=False) for packet in gops()], "mov"),
    ],
    ids=["decode-order timestamps", "repeated", "missing", "dts jumps back", "no keyframe"],
)
def test_packets_that_cannot_number_frames_are_not_trusted(packets, format_name):
    assert not index_of(packets, format_name=format_name).is_seekable


def test_recordings_may_start_between_keyframes_in_broadcast_formats_only():
    assert index_of(gops(), format_name="mpegts").may_start_mid_gop
    assert not index_of(gops(), format_name="mov,mp4").may_start_mid_gop


def test_a_frame_is_decoded_from_the_keyframe_before_it():
    index = index_of(gops())
    assert index.keyframe_before(11) is None
    assert index.keyframe_before(12) == Keyframe(12, 12, 12)
    assert index.keyframe_before(29) == Keyframe(24, 24, 24)
    assert index.first_frame_at(Keyframe(24, 24)) == 24
    assert index.first_frame_at(None) == 0


def test_frames_snap_to_a_keyframe_that_is_near_and_within_the_range():
    index, frames = index_of(gops()), np.array([2, 5, 10, 13, 26])
    assert index.snap_to_keyframes(frames, 3.1 / 30, 0, 30).tolist() == [0, 5, 12, 12, 24]
    assert index.snap_to_keyframes(frames, 3.1 / 30, 1, 24).tolist() == [2, 5, 12, 12, 26]
    assert index.snap_to_keyframes(frames, 3.1 / 30, 13, 24).tolist() == frames.tolist()


def test_frames_before_the_first_that_decodes_are_not_numbered():
    assert index_of(gops(4)).starting_at(2).ticks.tolist() == [2, 3]
    assert index_of(gops(4)).starting_at(0).ticks.tolist() == [0, 1, 2, 3]
    assert not index_of(gops(4)).starting_at(99).is_seekable
    assert not index_of(gops(4)).starting_at(None).is_seekable


def test_more_packets_than_the_limit_are_an_error():
    assert index_of(gops(5), max_frames=5).num_packets == 5
    with pytest.raises(VideoError, match="more than max_frames = 4") as raised:
        index_of(gops(5), max_frames=4)
    assert raised.value.reason == "too_large"


def test_an_mp4_that_ends_inside_a_packet_is_truncated():
    cut = [*gops(2), Packet(2, 2, is_corrupt=True)]
    index = index_of(cut)
    assert index.num_packets == 2
    assert index.damage == Damage("the file ends inside packet 2", 2)
    assert index_of(cut, format_name="mpegts").num_packets == 3


@pytest.mark.parametrize(
    ("codec", "payload", "hidden"),
    [
        ("vp8", [0x10, 0], False),
        ("vp8", [0x00, 0], True),
        ("vp9", [0b1000_0010, 0], False),
        ("vp9", [0b1000_0100, 0], True),
        ("vp9", [0b1000_1000, 0], False),
        ("vp9", [0b1000_0100, 0b1100_0000], False),
        ("h264", [0x00, 0], False),
    ],
    ids=["vp8 shown", "vp8 alt-ref", "vp9 shown", "vp9 alt-ref", "vp9 shows existing", "vp9 superframe", "h264"],
)
def test_alt_ref_frames_are_never_displayed(codec, payload, hidden):
    assert is_hidden(codec, bytes(payload)) == hidden


def test_frame_times_are_in_seconds_and_of_the_displayed_size():
    times = FrameTimes.from_index(index_of(B_FRAMES), [None], 1080, 1920, Orientation(is_transposed=True))
    assert (times.height_px, times.width_px) == (1920, 1080)
    np.testing.assert_allclose(times.pts_seconds, [0, 1 / 30, 2 / 30, 3 / 30])


def test_without_a_trusted_index_the_timestamps_of_the_decode_count():
    untrusted = index_of(B_FRAMES, format_name="avi")
    times = FrameTimes.from_index(untrusted, [7, 5, 6], 48, 64, Orientation())
    assert times.ticks.tolist() == [5, 6, 7]
    # 25 frames per second are 1.2 ticks of 1/30 s, rounded to 1
    assert FrameTimes.from_index(untrusted, [None, None], 48, 64, Orientation()).ticks.tolist() == [0, 1]
