"""The part of a damaged file that is proven right (`--prepare.decode.on-damage trim`).

A file is cut where it cannot have been damaged yet. The rules, for the first damage in the order of the file:

- Where the container shows that the file simply ends (an MP4 whose samples lie behind its end, a Matroska file cut inside
  a cluster), all packets before the end are whole. Kept are the frames displayed before the first lost packet is decoded:
  a lost packet can only be displayed later than that (its pts is not before its dts).
- Anything else (an error or a logged error of the decoder, a frame that it flags or leaves in part, two decodes that
  differ, packets and frames that do not match) may have begun earlier than it shows, as far back as frames refer: all
  frames from the last keyframe before it on are given up. A file of one group of pictures is then refused as before.

What is left is decoded once more from the start: it counts only if nothing at all is reported. Numbers of frames stay
those of the whole file, and every reader ends where the cut is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recaption.decoding.libav_log import ERROR_LOG
from recaption.errors import VideoError

MAX_ROUNDS = 8
"""Decodes from the start until nothing is reported; each ends earlier than the one before."""
DAMAGE_REASONS = ("truncated", "frame_mismatch")
"""Failures that leave a part of a file usable."""


@dataclass(frozen=True, slots=True)
class Damage:
    """The first damage that the container itself shows."""

    detail: str
    num_packets: int
    """Packets before it, hidden ones included: they are whole."""
    lost_dts: int | None = None
    """Decode time of the first lost packet, or a time before it, where the file simply ends there."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a file is cut: its first packets are kept, and of their frames those up to a time."""

    detail: str
    """What is damaged behind it."""
    num_packets: int
    last_tick: int | None = None
    """Presentation time of the last frame that may be kept; None: all frames of the packets."""

    def is_after(self, tick: int | None) -> bool:
        """Whether a frame of the kept packets is displayed too late to be kept."""
        return self.last_tick is not None and (tick is None or tick > self.last_tick)


class PacketWatch:
    """Passes packets on to a decoder and remembers the last keyframe, and the one before the first logged error."""

    def __init__(self) -> None:
        self.num_packets = 0
        self.keyframe = 0
        """Packets before the last keyframe."""
        self.suspect: int | None = None
        """`keyframe` when the first error was logged."""

    def __call__(self, packets: Iterator[Any]) -> Iterator[Any]:
        for packet in packets:
            self._note_errors()
            if packet is not None and packet.size:
                if packet.is_keyframe:
                    self.keyframe = self.num_packets
                self.num_packets += 1
            yield packet
        self._note_errors()

    def _note_errors(self) -> None:
        if ERROR_LOG.lines and self.suspect is None:
            self.suspect = self.keyframe

    @property
    def num_proven(self) -> int:
        """Packets before the keyframe from which on something may be wrong."""
        self._note_errors()
        return self.keyframe if self.suspect is None else self.suspect


def limit_packets(packets: Iterator[Any], num_packets: int) -> Iterator[Any]:
    """The first packets, at least one; then None, which makes a decoder output the frames that it holds."""
    for packet in packets:
        yield packet
        if not packet.size:
            return  # the end of the file
        num_packets -= 1
        if not num_packets:
            break
    yield None


def find_cut(
    read_index: Callable[[Cut | None], Any], decode: Callable[[Cut | None, Any, PacketWatch], Iterator[Any]]
) -> Cut | None:
    """Where to cut; None for an undamaged file.

    Args:
        read_index: the `PacketIndex` of a file cut there.
        decode: its frames, decoded from the start; the packets pass the watch.

    Raises:
        VideoError: nothing is proven right: the damage itself.
    """
    index = read_index(None)
    cut = _cut_of_container(index)
    for _ in range(MAX_ROUNDS):
        if cut is not None:
            if not cut.num_packets:
                break
            index = read_index(cut)
        watch = PacketWatch()
        earlier = _earlier_cut(index, decode(cut, index, watch), watch)
        if earlier is None:
            return cut
        cut = earlier
    raise VideoError("truncated", cut.detail if cut is not None else "damaged")


def _cut_of_container(index: Any) -> Cut | None:
    damage: Damage | None = index.damage
    if damage is None:
        return None
    if damage.lost_dts is not None:
        return Cut(damage.detail, damage.num_packets, damage.lost_dts)
    return Cut(damage.detail, max((keyframe.position for keyframe in index.keyframes), default=0))


def _earlier_cut(index: Any, frames: Iterator[Any], watch: PacketWatch) -> Cut | None:
    """None where all frames decode and match the index."""
    ticks: list[int | None] = []
    try:
        for frame in frames:
            ticks.append(frame.pts)
    except VideoError as error:
        if error.reason not in DAMAGE_REASONS:
            raise
        return Cut(error.detail, watch.num_proven)
    index = index.starting_at(ticks[0]) if ticks else index
    expected = index.ticks.tolist()
    if not index.is_seekable or ticks == expected or not expected:
        return None
    alike = [a == b for a, b in zip(expected, ticks, strict=False)]
    first = alike.index(False) if False in alike else min(len(alike), len(expected) - 1)
    before = [keyframe.position for keyframe in index.keyframes if keyframe.pts <= expected[first]]
    return Cut(f"the packet index has {len(expected)} frames, {len(ticks)} decode", max(before, default=0))


def total_seconds(index: Any, header_seconds: float, max_video_seconds: float) -> float:
    """Length of the whole file: by its packets, or by its header where that says more and is plausible."""
    steps = np.diff(index.ticks)
    last = float(np.median(steps) * index.time_base) if len(steps) else 0.0
    plausible = header_seconds if header_seconds <= max_video_seconds else 0.0
    return max(index.seconds + last, plausible)
