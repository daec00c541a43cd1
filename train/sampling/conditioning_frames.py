"""Conditioning frames: the pixels of a video to sample plus a mask of its known frames. One function per mode.

    conditioning = image_to_video(image_HWC, 17, grid)                  # the first frame is known, 16 are sampled
    conditioning = extend(video_THWC, 12, grid)                         # the video is known, then 12 frames are sampled
    conditioning = connect([first_THWC, second_THWC], 12, grid)         # 12 frames are sampled between two videos

A causal compressor encodes the first frame alone and then each group of `frame_stride` frames. Known frames have to fill
whole groups: with stride 4 a video at the start keeps 4k+1 of its frames, and a later one 4k. Frames that do not fit are
dropped at the end that is not continued, and `notes` says so.

Shape suffixes: T frames, H, W, C. Frames are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packing.grid import Grid
from recaption.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ConditioningFrames:
    """All frames of a video before it is sampled, known or not."""

    mode: str
    """text, image, extend, extend-back, connect, loop, inbetween or edit."""
    frames_THWC: np.ndarray
    """Black where a frame is to be sampled; in an edit, the source video."""
    condition_mask_T: np.ndarray
    """bool: the known frames; whole groups of the compressor only."""
    start: int = 0
    """First frame of the result; the frames before it are sampled and dropped."""
    end: int | None = None
    """One past the last frame of the result; None: all."""
    strength: float = 1.0
    """Time to start sampling from: 1 = pure noise, below = the frames noised to that time (SDEdit, arXiv 2108.01073)."""
    source_text: str | None = None
    """The caption of a video to edit by inversion: its noise at time `strength` is found under this caption, not drawn."""
    notes: tuple[str, ...] = ()
    """What was dropped, for the user."""

    @property
    def num_frames(self) -> int:
        return len(self.condition_mask_T)

    @property
    def starts_from_frames(self) -> bool:
        """Whether sampling starts from the frames, with noise, and not from noise alone."""
        return self.strength < 1 or self.source_text is not None


def prefix_length(num_frames: int, grid: Grid) -> int:
    """The most of `num_frames` frames that fill whole tokens at the start of a video: 4k+1 for stride 4; 0 where none do."""
    unit = grid.frame_stride * grid.patch[0]
    return max(0, (num_frames - 1 + grid.frame_stride) // unit * unit - grid.frame_stride + 1)


def segment_length(num_frames: int, grid: Grid) -> int:
    """The most of `num_frames` frames that fill whole tokens later in a video: 4k for stride 4."""
    unit = grid.frame_stride * grid.patch[0]
    return num_frames // unit * unit


def text_to_video(num_frames: int, height_px: int, width_px: int) -> ConditioningFrames:
    """No conditioning frames."""
    return _all_unknown("text", num_frames, (height_px, width_px))


def image_to_video(image_HWC: np.ndarray, num_frames: int, grid: Grid) -> ConditioningFrames:
    """An image as the first frame.

    Raises:
        UsageError: the model's tokens span several latent frames.
    """
    if grid.patch[0] > 1:
        raise UsageError(
            f"this model's tokens span {grid.patch[0]} latent frames, so a single image fills none: pass a video to extend"
        )
    conditioning = _all_unknown("image", num_frames, image_HWC.shape)
    conditioning.frames_THWC[0] = image_HWC
    conditioning.condition_mask_T[0] = True
    return conditioning


def extend(video_THWC: np.ndarray, new_frames: int, grid: Grid) -> ConditioningFrames:
    """A video, then `new_frames` to sample."""
    new_frames = _whole_groups(new_frames, grid)
    length = _check_length(prefix_length(len(video_THWC), grid), len(video_THWC), grid)
    parts = [(video_THWC[-length:], True), (_black(new_frames, video_THWC), False)]
    return _concatenate("extend", parts, notes=_dropped_note(len(video_THWC), length, "first"))


def extend_backward(video_THWC: np.ndarray, new_frames: int, grid: Grid) -> ConditioningFrames:
    """`new_frames` to sample, then a video."""
    new_frames = _whole_groups(new_frames, grid)
    length = _check_length(segment_length(len(video_THWC), grid), len(video_THWC), grid)
    # At the start of a video groups hold 4k+1 frames: the first frame is sampled and dropped.
    first = prefix_length(new_frames + grid.frame_stride * grid.patch[0], grid)
    parts = [(_black(first, video_THWC), False), (video_THWC[:length], True)]
    return _concatenate(
        "extend-back", parts, start=first - new_frames, notes=_dropped_note(len(video_THWC), length, "last")
    )


def connect(videos: Sequence[np.ndarray], new_frames: int, grid: Grid) -> ConditioningFrames:
    """Two or more videos, with `new_frames` to sample between each and the next."""
    if len(videos) < 2:
        raise UsageError(f"connect needs two videos or more, not {len(videos)}")
    new_frames = _whole_groups(new_frames, grid)
    lengths = [_check_length(prefix_length(len(videos[0]), grid), len(videos[0]), grid)]
    lengths += [_check_length(segment_length(len(video), grid), len(video), grid) for video in videos[1:]]
    notes = _dropped_note(len(videos[0]), lengths[0], "first")
    parts = [(videos[0][-lengths[0] :], True)]
    for video, length in zip(videos[1:], lengths[1:]):
        parts += [(_black(new_frames, video), False), (video[:length], True)]
        notes += _dropped_note(len(video), length, "last")
    return _concatenate("connect", parts, notes=notes)


def loop(video_THWC: np.ndarray, new_frames: int, repeated_frames: int, grid: Grid) -> ConditioningFrames:
    """A video, then `new_frames` to sample that lead back to its start.

    After them the first frames of the video are known once more; they are not part of the result.

    Args:
        repeated_frames: how many of them, at most.
    """
    new_frames = _whole_groups(new_frames, grid)
    length = _check_length(prefix_length(len(video_THWC), grid), len(video_THWC), grid)
    video_THWC, notes = video_THWC[-length:], _dropped_note(len(video_THWC), length, "first")
    repeated = segment_length(min(repeated_frames, length), grid)
    if not repeated:
        raise UsageError(
            f"a loop needs a video of {1 + grid.frame_stride * grid.patch[0]} frames or more, not {length}"
        )
    parts = [(video_THWC, True), (_black(new_frames, video_THWC), False), (video_THWC[:repeated], True)]
    return _concatenate("loop", parts, end=length + new_frames, notes=notes)


def keyframe_interpolation(
    images: Sequence[np.ndarray], at_frames: Sequence[int], num_frames: int, grid: Grid
) -> ConditioningFrames:
    """Images at given times, with the frames between them to sample.

    An image at time 0 is the first frame; a later one is repeated for the group of frames that contains it.
    """
    if len(images) < 2 or len(images) != len(at_frames):
        raise UsageError(
            f"inbetween needs two images or more and a time for each, not {len(images)} images and {len(at_frames)} times"
        )
    if grid.patch[0] > 1:
        raise UsageError(f"this model's tokens span {grid.patch[0]} latent frames, so a single image fills none")
    conditioning = _all_unknown("inbetween", num_frames, images[0].shape)
    for image_HWC, frame in zip(images, at_frames):
        if not 0 <= frame < num_frames:
            raise UsageError(f"an image at frame {frame} is outside of a video of {num_frames} frames")
        group = -(-frame // grid.frame_stride)
        span = slice(max(0, (group - 1) * grid.frame_stride + 1), group * grid.frame_stride + 1)
        if conditioning.condition_mask_T[span].any():
            raise UsageError(
                f"two images fall into frames {span.start} to {span.stop - 1}, which the compressor encodes as one group: "
                "move one of them in time"
            )
        conditioning.frames_THWC[span] = image_HWC
        conditioning.condition_mask_T[span] = True
    return conditioning


def video_to_video(
    video_THWC: np.ndarray, strength: float, grid: Grid, *, source_text: str | None = None
) -> ConditioningFrames:
    """A video to edit, noised to time `strength` (SDEdit): 0 leaves it unchanged, 1 ignores it.

    Args:
        source_text: caption of the video, whose noise is then found by inversion (train/diffusion/inversion.py).
    """
    if not 0 < strength <= 1:
        raise UsageError(
            f"strength = {strength} must be above 0 (nothing changes) and at most 1 (the video is ignored)"
        )
    length = _check_length(prefix_length(len(video_THWC), grid), len(video_THWC), grid)
    notes = _dropped_note(len(video_THWC), length, "last")
    condition_mask_T = np.zeros(length, bool)
    return ConditioningFrames(
        mode="edit",
        frames_THWC=video_THWC[:length],
        condition_mask_T=condition_mask_T,
        strength=strength,
        source_text=source_text,
        notes=notes,
    )


def _all_unknown(mode: str, num_frames: int, size: Sequence[int]) -> ConditioningFrames:
    """No frame is known. `size` starts with height and width."""
    frames_THWC = np.zeros((num_frames, size[0], size[1], 3), np.uint8)
    return ConditioningFrames(mode=mode, frames_THWC=frames_THWC, condition_mask_T=np.zeros(num_frames, bool))


def _black(num_frames: int, like_THWC: np.ndarray) -> np.ndarray:
    return np.zeros((num_frames, *like_THWC.shape[1:]), np.uint8)


def _concatenate(
    mode: str,
    parts: Sequence[tuple[np.ndarray, bool]],
    *,
    start: int = 0,
    end: int | None = None,
    notes: tuple[str, ...] = (),
) -> ConditioningFrames:
    """Known and unknown parts, end to end.

    Args:
        parts: (frames_THWC, whether they are known).
    """
    sizes = {frames.shape[1:] for frames, _ in parts}
    if len(sizes) > 1:
        raise UsageError(f"videos of one prompt must have one size, not {sorted(sizes)}")
    return ConditioningFrames(
        mode=mode,
        frames_THWC=np.concatenate([frames for frames, _ in parts]),
        condition_mask_T=np.concatenate([np.full(len(frames), is_known) for frames, is_known in parts]),
        start=start,
        end=end,
        notes=notes,
    )


def _whole_groups(new_frames: int, grid: Grid) -> int:
    """`new_frames`; raises UsageError unless they fill whole tokens."""
    unit = grid.frame_stride * grid.patch[0]
    if new_frames < unit or new_frames % unit:
        lower = new_frames // unit * unit
        nearest = f"{lower} or {lower + unit}" if lower else str(unit)
        raise UsageError(
            f"this model samples new frames in groups of {unit}: new_frames = {new_frames} must be {nearest}"
        )
    return new_frames


def _check_length(length: int, num_frames: int, grid: Grid) -> int:
    """`length`; raises UsageError where it is 0: the video fills no token."""
    if not length:
        raise UsageError(
            f"a video of {num_frames} frames is too short: {1 + grid.frame_stride * grid.patch[0]} are enough"
        )
    return length


def _dropped_note(num_frames: int, length: int, which: str) -> tuple[str, ...]:
    dropped = num_frames - length
    if not dropped:
        return ()
    return (f"the {which} {dropped} of {num_frames} frames are dropped: the compressor needs whole groups",)
