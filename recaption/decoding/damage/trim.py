"""The part of a damaged file that is proven right (`--prepare.decode.on-damage trim`).

Decoders report flipped bits late or never (measured: 19 % of damaged H.264 packets and 91 % of VP9's give no report at
all), so a report says nothing about the frames before it. A file is trimmed only where it is known which bytes are lost:

- it ends early: an MP4 all of whose samples from one on lie behind the end, a Matroska file that is shorter than its
  header says and ends inside a cluster, or a file of another format whose last packet, and no other, is reported;
- it has a hole: the damage that is reported is in or behind a packet with a run of zero bytes, or Matroska's structure
  breaks off at one.

All packets before are then whole. Kept are the frames displayed before the first lost packet would be decoded: it cannot
be displayed earlier, as its pts is not before its dts. They are decoded once more from the start and count only if nothing
at all is reported. Every other damaged file is refused as ever. Frames keep their numbers, and every reader ends at the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recaption.decoding.damage.checked_decoder import MIN_HOLE_BYTES, find_hole
from recaption.decoding.libav_log import ERROR_LOG
from recaption.errors import VideoError

MAX_ROUNDS = 3
"""Decodes from the start until nothing is reported."""


@dataclass(frozen=True, slots=True)
class Damage:
    """The first damage that the container itself shows."""

    detail: str
    num_packets: int
    """Packets before it, hidden ones included."""
    lost_dts: int | None = None
    """Where the file simply ends: decode time of the first lost packet, or a time before it. None: it is not known what is
    lost."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a file is cut: its first packets are kept, and of their frames those up to a time."""

    detail: str
    """What is damaged behind it."""
    num_packets: int
    last_tick: int | None
    """Presentation time of the last frame that may be kept; None where packets have no times: all."""

    def is_after(self, tick: int | None) -> bool:
        """Whether a frame of the kept packets is displayed too late to be kept."""
        return self.last_tick is not None and (tick is None or tick > self.last_tick)


@dataclass(frozen=True, slots=True)
class _Place:
    """A packet: the number of packets before it, and its decode time."""

    position: int
    dts: int | None


class PacketWatch:
    """Passes packets on to a decoder and remembers where errors were logged first, and where the first hole is."""

    def __init__(self) -> None:
        self.last: _Place | None = None
        self.before_last: _Place | None = None
        self.suspect: _Place | None = None
        """The packet whose decoding logged the first error."""
        self.hole: _Place | None = None
        """The first packet that may have lost bytes to a hole. Where a codec pads with zeros, less than possible is kept."""

    def __call__(self, packets: Iterator[Any]) -> Iterator[Any]:
        for packet in packets:
            self._note_errors()
            if packet is not None and packet.size:
                self.before_last, self.last = self.last, _Place(1 + self.last.position if self.last else 0, packet.dts)
                self._find_hole(packet)
            yield packet
        self._note_errors()

    def _find_hole(self, packet: Any) -> None:
        if self.hole is None:
            start = find_hole(packet)
            if start >= 0:  # a hole that starts in the first bytes may have started in the packet before
                self.hole = self.last if start >= MIN_HOLE_BYTES else self.before_last or self.last

    def _note_errors(self) -> None:
        if ERROR_LOG.lines and self.suspect is None:
            self.suspect = self.last

    @property
    def reported(self) -> _Place | None:
        """The first packet with a report, once decoding has failed."""
        self._note_errors()
        return self.suspect or self.last


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
        VideoError: it is not known which bytes are lost, or all are: the damage itself.
    """
    index = read_index(None)
    damage: Damage | None = index.damage
    cut = None
    if damage is not None:
        if damage.lost_dts is None or not damage.num_packets:
            raise VideoError("truncated", damage.detail)
        cut = Cut(damage.detail, damage.num_packets, damage.lost_dts)
        index = read_index(cut)
    last_position = None if cut is not None or index.knows_its_end else index.num_stored - 1
    for _ in range(MAX_ROUNDS):
        watch = PacketWatch()
        try:
            check_against_index(index, [frame.pts for frame in decode(cut, index, watch)])
        except VideoError as error:
            lost = _lost_packet(watch, last_position if cut is None else None)
            if error.reason != "truncated" or lost is None or not lost.position:
                raise
            cut = Cut(error.detail, lost.position, lost.dts)
            index = read_index(cut)
        else:
            return cut
    raise VideoError("truncated", cut.detail if cut is not None else "")


def _lost_packet(watch: PacketWatch, last_position: int | None) -> _Place | None:
    """The first packet that has lost bytes, where that is known.

    Args:
        last_position: of the packet at which the file may have been cut off; None where its end is known or ours.
    """
    reported = watch.reported
    if reported is None:
        return None
    if watch.hole is not None and watch.hole.position <= reported.position:
        return watch.hole
    return reported if reported.position == last_position else None


def check_against_index(index: Any, ticks: list[int | None]) -> None:
    """Refuse a file whose packet index and decoded frames disagree: later reads number frames by packets."""
    index = index.starting_at(ticks[0]) if ticks else index
    if not index.is_seekable or ticks == index.ticks.tolist():
        return
    missing = sorted(set(index.ticks.tolist()) - set(ticks))
    where = f", the first missing one is frame {int(np.searchsorted(index.ticks, missing[0]))}" if missing else ""
    raise VideoError("frame_mismatch", f"the packet index has {len(index.ticks)} frames, {len(ticks)} decode{where}")


def total_seconds(index: Any, header_seconds: float, max_video_seconds: float) -> float:
    """Length of the whole file: by its packets, or by its header where that says more and is plausible."""
    steps = np.diff(index.ticks)
    last = float(np.median(steps) * index.time_base) if len(steps) else 0.0
    plausible = header_seconds if header_seconds <= max_video_seconds else 0.0
    return max(index.seconds + last, plausible)
