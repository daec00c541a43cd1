"""Deinterlacing of the frames that are flagged interlaced, by libav's own yadif: one frame for each frame.

    for number, frame in deinterlaced(enumerate(frames)): ...

Bytes equal `ffmpeg -vf yadif=mode=send_frame:deint=interlaced`. A picture depends on its frame and on the two beside it and
on nothing else, so frames may be decoded from any keyframe as long as both neighbours are there.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Iterator
from fractions import Fraction
from typing import Any

import av.filter

MIN_SIDE_PX = 3
"""yadif refuses smaller frames; they are left as they are."""


class Yadif:
    """yadif over runs of consecutive frames; a run goes on as long as each call continues the one before."""

    def __init__(self) -> None:
        self.graph: Any = None
        self.pushed: tuple[Any, Any] = (None, None)
        """The last two frames that went into the graph."""

    def __call__(self, previous: Any, frame: Any, following: Any) -> Any:
        """`frame` without interlacing.

        Args:
            previous, following: its neighbours in display order; None at the ends of the video. One of another size or
                pixel format counts as an end, as ffmpeg starts its filters anew there.
        """
        if min(frame.width, frame.height) < MIN_SIDE_PX:
            return frame
        previous, following = (_as_neighbour(other, frame) for other in (previous, following))
        if self.graph is None or self.pushed[0] is not previous or self.pushed[1] is not frame:
            self._start(previous, frame)
        if following is None:
            self.graph.push(None)
        else:
            self.graph.push(following)
        result = self.graph.pull()
        result.pts, result.time_base, result.duration = frame.pts, frame.time_base, frame.duration
        self.pushed = (frame, following)
        if following is None:
            self.graph = None
        return result

    def _start(self, previous: Any, frame: Any) -> None:
        self.graph = av.filter.Graph()
        self.graph.threads = 1
        nodes = [
            self.graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 25),
            ),
            self.graph.add("yadif", "mode=send_frame:deint=interlaced"),
            self.graph.add("buffersink"),
        ]
        self.graph.link_nodes(*nodes).configure()
        if previous is not None:
            self.graph.push(previous)
        self.graph.push(frame)
        if previous is not None:
            self.graph.pull()  # of the previous frame, whose own neighbour is missing


def _as_neighbour(other: Any, frame: Any) -> Any:
    is_alike = other is not None and (other.width, other.height, other.format.name) == (
        frame.width,
        frame.height,
        frame.format.name,
    )
    return other if is_alike else None


def deinterlaced(frames: Iterator[tuple[int, Any]], wanted: Container[int] | None = None) -> Generator[tuple[int, Any]]:
    """The wanted ones (None: all) of consecutive numbered frames, deinterlaced where they are flagged interlaced.

    The frame after a picture is decoded only if the picture needs it.
    """
    yadif = Yadif()
    previous: Any = None
    current = next(frames, None)
    while current is not None:
        number, frame = current
        following = None
        is_wanted = wanted is None or number in wanted
        if is_wanted and frame.interlaced_frame:
            following = next(frames, None)
            yield number, yadif(previous, frame, None if following is None else following[1])
        elif is_wanted:
            yield number, frame
        previous, current = frame, following or next(frames, None)
