"""Images and videos of a prompt on their way to the model: read, brought to its rate and to a size of its grid.

given = GivenMedia.read(ask, sampler)
given.timeline, given.loop_frames                        # what train.sampling.request.Request takes
given.notes                                                 # what was cropped, and what was left out
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.sample.requests import DEFAULT_STRENGTH, HAVE_NEW_FRAMES, Ask
from packing.buckets import CROP_WEIGHT, Bucket, num_frames_in
from recaption.errors import UsageError
from recaption.records import Video
from recaption.video_io.reader import probe, read_clip, read_frames
from train.sampling import conditioning_frames as conditioning
from train.sampling.conditioning_frames import ConditioningFrames
from train.sampling.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class GivenMedia:
    """An ask with its files read."""

    conditioning: ConditioningFrames
    loop_frames: int
    new_frames: int
    """Frames added to a video, also where the ask left that open; 0 in modes that add none."""
    media_ids: tuple[str, ...]
    """Hashes of the files, in the order of the ask."""
    source_THWC: np.ndarray | None
    """What an edit starts from."""
    notes: tuple[str, ...]

    @classmethod
    def read(cls, ask: Ask, sampler: Sampler) -> GivenMedia:
        """
        Raises:
            UsageError: a size off the model's grid, or too few frames.
            VideoError: a file that cannot be read.
        """
        found = [_found(uri) for uri in (*ask.image, *ask.video)]
        size = _size(ask, found, sampler)
        notes = tuple(note for video in found for note in _cropped(video, size))
        if ask.image:
            media = [_read_image(video, size) for video in found]
        else:
            media = [_read_video(video, size) for video in found]
        new_frames = ask.new_frames or 0
        if ask.mode in HAVE_NEW_FRAMES and ask.new_frames is None:
            new_frames = sampler.default_new_frames(ask.mode)
        made = _timeline(ask, media, size, new_frames, sampler)
        return cls(
            conditioning=made,
            loop_frames=new_frames if ask.mode == "loop" and not ask.video else 0,
            new_frames=new_frames,
            media_ids=tuple(video.video_id for video in found),
            source_THWC=made.frames_THWC if ask.mode == "edit" else None,
            notes=(*notes, *made.notes),
        )


def _timeline(
    ask: Ask, media: Sequence[np.ndarray], size: Bucket, new_frames: int, sampler: Sampler
) -> ConditioningFrames:
    """Which frames are given, and which are open."""
    grid = sampler.grid
    if ask.mode == "edit":
        return conditioning.video_to_video(media[0], DEFAULT_STRENGTH if ask.strength is None else ask.strength, grid)
    if ask.mode == "inbetween":
        return conditioning.keyframe_interpolation(media, _at_frames(ask, len(media), size), size.num_frames, grid)
    if ask.mode == "extend":
        return conditioning.extend(media[0], new_frames, grid)
    if ask.mode == "extend-back":
        return conditioning.extend_backward(media[0], new_frames, grid)
    if ask.mode == "connect":
        return conditioning.connect(media, new_frames, grid)
    if ask.video:
        return conditioning.loop(media[0], new_frames, sampler.overlap_frames, grid)
    if ask.image:
        return conditioning.image_to_video(media[0], size.num_frames, grid)
    return conditioning.text_to_video(size.num_frames, size.height_px, size.width_px)


def _at_frames(ask: Ask, num_images: int, size: Bucket) -> list[int]:
    if not ask.at_seconds:
        return [round(i * (size.num_frames - 1) / (num_images - 1)) for i in range(num_images)]
    if len(ask.at_seconds) != num_images:
        raise UsageError(f"at_seconds names {len(ask.at_seconds)} times for {num_images} images")
    return [round(seconds * size.fps) for seconds in ask.at_seconds]


def _found(uri: str) -> Video:
    video = probe(uri)
    if video.status != "ok":
        raise UsageError(f"{uri} cannot be used: {video.reason}: {video.detail}")
    return video


def _size(ask: Ask, found: Sequence[Video], sampler: Sampler) -> Bucket:
    """The size asked for; what is left open is about as large as most samples were, in the shape of the first picture."""
    height_px, width_px = ask.height_px, ask.width_px
    if found and not (height_px and width_px):
        height_px, width_px = _size_in_shape(height_px, width_px, found[0].height_px / found[0].width_px, sampler)
    return sampler.size(ask.num_frames or None, height_px or None, width_px or None)


def _size_in_shape(height_px: int, width_px: int, shape: float, sampler: Sampler) -> tuple[int, int]:
    """(height, width) on the grid, near `shape` = height / width; 0 = open, otherwise kept. Weighs what is cropped against
    what is larger or smaller as buckets.py does."""
    usual, (_, patch_rows, patch_columns) = sampler.size(None, None, None), sampler.grid.patch
    step_height, step_width = sampler.grid.spatial_stride * patch_rows, sampler.grid.spatial_stride * patch_columns
    area_px = usual.height_px * usual.width_px
    aimed_height = width_px * shape if width_px else (area_px * shape) ** 0.5
    heights = [height_px] if height_px else _multiples_around(aimed_height, step_height)
    sizes = [(h, w) for h in heights for w in ([width_px] if width_px else _multiples_around(h / shape, step_width))]

    def cost(size: tuple[int, int]) -> float:
        cropped = 1 - min(size[0] / size[1] / shape, shape * size[1] / size[0])
        return CROP_WEIGHT * cropped + abs(math.log(size[0] * size[1] / area_px))

    return min(sizes, key=cost)


def _multiples_around(length_px: float, step_px: int) -> list[int]:
    below = int(length_px // step_px) * step_px
    return [size for size in (below, below + step_px) if size]


def _cropped(video: Video, size: Bucket) -> list[str]:
    """What is lost where a picture covers a size of another shape; nothing said where nothing is."""
    scale = max(size.height_px / video.height_px, size.width_px / video.width_px)
    name, notes = os.path.basename(video.uri), []
    for side, own_px, wanted_px in (
        ("height", video.height_px, size.height_px),
        ("width", video.width_px, size.width_px),
    ):
        lost = 1 - wanted_px / (own_px * scale)
        if round(own_px * scale) > wanted_px:
            notes.append(
                f"{name} ({video.width_px}x{video.height_px} px, width x height) cropped to the shape of "
                f"{size.width_px}x{size.height_px}: {100 * lost:.1f} % of its {side} is left out"
            )
    return notes


def _read_image(video: Video, size: Bucket) -> np.ndarray:
    return _read(video, size, 1)[0]


def _read_video(video: Video, size: Bucket) -> np.ndarray:
    return _read(video, size, num_frames_in(video.duration_seconds, size.fps))


def _read(video: Video, size: Bucket, num_frames: int) -> np.ndarray:
    """The first frames of a file at the model's rate, scaled to cover the size, the centre cropped."""
    start_seconds = float(read_frames(video.uri, [0]).pts_seconds[0])
    return read_clip(
        video.uri,
        start_seconds,
        num_frames=num_frames,
        fps=size.fps,
        height_px=size.height_px,
        width_px=size.width_px,
        start_frame=0,
        end_frame=video.num_frames,
    )
