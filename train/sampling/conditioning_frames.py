"""A video before it is sampled: which of its frames are given, which are open. One function per kind of prompt.

    timeline = animated(image_HWC, 17, grid)                    # the first frame given, 16 open
    timeline = extended(video_THWC, 12, grid)                   # all of the video, then 12 open frames
    timeline = connected([one_THWC, other_THWC], 12, grid)      # one, 12 open frames, other

A causal compressor makes one latent frame of the first frame and one of each group of `frame_stride` frames after it.
What is given has to fill whole groups, so a video at the start keeps 4k+1 of its frames and one further on 4k (of stride
4); frames that do not fit are left out at the end that is not continued, and `notes` says so.

Shape suffixes: T frames, H, W, C. Frames are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packing.grid import Grid
from recaption.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Every frame from the first to the last, given or not."""

    mode: str
    frames_THWC: np.ndarray
    """Where a frame is open, black; in an edit, what it is made from."""
    given_T: np.ndarray
    """bool; whole groups only."""
    start: int = 0
    """First frame of the result."""
    end: int | None = None
    """One past its last; default: all."""
    noise_share: float = 1.0
    """Noise that open frames start from: 1 = nothing else, below = the rest is what the frame holds (SDEdit, arXiv
    2108.01073)."""
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.given_T)


def first_length(num_frames: int, grid: Grid) -> int:
    """The most frames, out of so many, that fill whole tokens at the start of a video; 0 where they fill none."""
    unit = grid.frame_stride * grid.patch[0]
    return max(0, (num_frames - 1 + grid.frame_stride) // unit * unit - grid.frame_stride + 1)


def later_length(num_frames: int, grid: Grid) -> int:
    """The most frames, out of so many, that fill whole tokens further on in a video."""
    unit = grid.frame_stride * grid.patch[0]
    return num_frames // unit * unit


def blank(num_frames: int, height_px: int, width_px: int) -> Timeline:
    """Text alone."""
    return _opened("text", num_frames, (height_px, width_px))


def animated(image_HWC: np.ndarray, num_frames: int, grid: Grid) -> Timeline:
    """An image that is to move: it is the first frame."""
    if grid.patch[0] > 1:
        raise UsageError(
            f"this model's tokens hold {grid.patch[0]} latent frames, so that one image fills none: give a video to extend"
        )
    timeline = _opened("image", num_frames, image_HWC.shape)
    timeline.frames_THWC[0] = image_HWC
    timeline.given_T[0] = True
    return timeline


def extended(video_THWC: np.ndarray, new_frames: int, grid: Grid) -> Timeline:
    """A video and `new_frames` after it."""
    new_frames = _whole_groups(new_frames, grid)
    length = _enough(first_length(len(video_THWC), grid), len(video_THWC), grid)
    parts = [(video_THWC[-length:], True), (_black(new_frames, video_THWC), False)]
    return _joined("extend", parts, notes=_left_out(len(video_THWC), length, "first"))


def led_up_to(video_THWC: np.ndarray, new_frames: int, grid: Grid) -> Timeline:
    """`new_frames` and a video after them."""
    new_frames = _whole_groups(new_frames, grid)
    length = _enough(later_length(len(video_THWC), grid), len(video_THWC), grid)
    # Open frames at the start come as 4k+1: the first one is made and left out.
    first = first_length(new_frames + grid.frame_stride * grid.patch[0], grid)
    parts = [(_black(first, video_THWC), False), (video_THWC[:length], True)]
    return _joined("extend-back", parts, start=first - new_frames, notes=_left_out(len(video_THWC), length, "last"))


def connected(videos: Sequence[np.ndarray], new_frames: int, grid: Grid) -> Timeline:
    """Two or more videos with `new_frames` between each and the next."""
    if len(videos) < 2:
        raise UsageError(f"connect takes two videos or more, not {len(videos)}")
    new_frames = _whole_groups(new_frames, grid)
    lengths = [_enough(first_length(len(videos[0]), grid), len(videos[0]), grid)]
    lengths += [_enough(later_length(len(video), grid), len(video), grid) for video in videos[1:]]
    notes = _left_out(len(videos[0]), lengths[0], "first")
    parts = [(videos[0][-lengths[0] :], True)]
    for video, length in zip(videos[1:], lengths[1:]):
        parts += [(_black(new_frames, video), False), (video[:length], True)]
        notes += _left_out(len(video), length, "last")
    return _joined("connect", parts, notes=notes)


def looped(video_THWC: np.ndarray, new_frames: int, again_frames: int, grid: Grid) -> Timeline:
    """A video and `new_frames` that lead back to its start.

    Behind the new frames the video's own first ones stand once more, given; they are no part of the result.

    Args:
        again_frames: how many of them, at most.
    """
    new_frames = _whole_groups(new_frames, grid)
    length = _enough(first_length(len(video_THWC), grid), len(video_THWC), grid)
    video_THWC, notes = video_THWC[-length:], _left_out(len(video_THWC), length, "first")
    again = later_length(min(again_frames, length), grid)
    if not again:
        raise UsageError(
            f"a loop needs a video of {1 + grid.frame_stride * grid.patch[0]} frames or more, not {length}"
        )
    parts = [(video_THWC, True), (_black(new_frames, video_THWC), False), (video_THWC[:again], True)]
    return _joined("loop", parts, end=length + new_frames, notes=notes)


def between(images: Sequence[np.ndarray], at_frames: Sequence[int], num_frames: int, grid: Grid) -> Timeline:
    """Pictures at their times and the frames between them.

    A picture at the start is the first frame; one further on stands still for the group of frames that it falls into.
    """
    if len(images) < 2 or len(images) != len(at_frames):
        raise UsageError(
            f"inbetween takes two images or more and a time for each, not {len(images)} and {len(at_frames)}"
        )
    if grid.patch[0] > 1:
        raise UsageError(f"this model's tokens hold {grid.patch[0]} latent frames: single images cannot be given")
    timeline = _opened("inbetween", num_frames, images[0].shape)
    for image_HWC, frame in zip(images, at_frames):
        if not 0 <= frame < num_frames:
            raise UsageError(f"an image at frame {frame} lies outside of a video of {num_frames} frames")
        group = -(-frame // grid.frame_stride)
        span = slice(max(0, (group - 1) * grid.frame_stride + 1), group * grid.frame_stride + 1)
        if timeline.given_T[span].any():
            raise UsageError(
                f"two images fall into frames {span.start} to {span.stop - 1}, which the compressor keeps together: "
                "move one of them in time"
            )
        timeline.frames_THWC[span] = image_HWC
        timeline.given_T[span] = True
    return timeline


def edited(video_THWC: np.ndarray, strength: float, grid: Grid) -> Timeline:
    """A video to be made anew from itself with `strength` of noise: 0 leaves it, 1 forgets it."""
    if not 0 < strength <= 1:
        raise UsageError(f"strength = {strength} must be above 0 (nothing changes) and at most 1 (nothing is kept)")
    length = _enough(first_length(len(video_THWC), grid), len(video_THWC), grid)
    notes = _left_out(len(video_THWC), length, "last")
    given_T = np.zeros(length, bool)
    return Timeline(mode="edit", frames_THWC=video_THWC[:length], given_T=given_T, noise_share=strength, notes=notes)


def _opened(mode: str, num_frames: int, size: Sequence[int]) -> Timeline:
    """Nothing given yet. `size` starts with height and width."""
    frames_THWC = np.zeros((num_frames, size[0], size[1], 3), np.uint8)
    return Timeline(mode=mode, frames_THWC=frames_THWC, given_T=np.zeros(num_frames, bool))


def _black(num_frames: int, like_THWC: np.ndarray) -> np.ndarray:
    return np.zeros((num_frames, *like_THWC.shape[1:]), np.uint8)


def _joined(
    mode: str,
    parts: Sequence[tuple[np.ndarray, bool]],
    *,
    start: int = 0,
    end: int | None = None,
    notes: tuple[str, ...] = (),
) -> Timeline:
    """Parts, given or open, end to end."""
    sizes = {frames.shape[1:] for frames, _ in parts}
    if len(sizes) > 1:
        raise UsageError(f"videos of one prompt must have one size, not {sorted(sizes)}")
    return Timeline(
        mode=mode,
        frames_THWC=np.concatenate([frames for frames, _ in parts]),
        given_T=np.concatenate([np.full(len(frames), given) for frames, given in parts]),
        start=start,
        end=end,
        notes=notes,
    )


def _whole_groups(new_frames: int, grid: Grid) -> int:
    """Raises UsageError unless new frames fill whole tokens."""
    unit = grid.frame_stride * grid.patch[0]
    if new_frames < unit or new_frames % unit:
        lower = new_frames // unit * unit
        nearest = f"{lower} or {lower + unit}" if lower else str(unit)
        raise UsageError(
            f"this model makes new frames in groups of {unit}: new_frames = {new_frames} must be {nearest}"
        )
    return new_frames


def _enough(length: int, num_frames: int, grid: Grid) -> int:
    """Raises UsageError where a video is too short to be given."""
    if not length:
        raise UsageError(
            f"a video of {num_frames} frames is too short to be given: {1 + grid.frame_stride * grid.patch[0]} are enough"
        )
    return length


def _left_out(num_frames: int, kept: int, which: str) -> tuple[str, ...]:
    dropped = num_frames - kept
    return (f"the {which} {dropped} of {num_frames} frames left out: groups have to be whole",) if dropped else ()
