"""Reads the images and videos of a request, resampled to the frame rate and a frame size of the model.

media = ConditioningMedia.read(request, sampler)
media.timeline, media.loop_frames                        # arguments of train.sampling.request.Request
media.notes                                                 # what was cropped or left out, as text
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.sample.read_back import caption_shots
from jobs.sample.requests import DEFAULT_STRENGTH, MODES_WITH_NEW_FRAMES, SampleRequest
from packing.buckets import CROP_WEIGHT, Bucket, num_frames_in
from recaption.errors import UsageError
from recaption.records import Video
from recaption.video_io.reader import probe, read_clip, read_frames
from train.sampling import conditioning_frames as conditioning
from train.sampling.conditioning_frames import ConditioningFrames
from train.sampling.sampler import Sampler
from train.sampling.sizes import supported_length


@dataclass(frozen=True, kw_only=True)
class ConditioningMedia:
    """The decoded media of one request."""

    conditioning: ConditioningFrames
    loop_frames: int
    new_frames: int
    """Frames to generate around the video, with the default filled in; 0 in modes that add none."""
    media_ids: tuple[str, ...]
    """Hashes of the files, in the order of the request."""
    source_THWC: np.ndarray | None
    """Input video of an edit; None in other modes."""
    notes: tuple[str, ...]

    @classmethod
    def read(cls, request: SampleRequest, sampler: Sampler) -> ConditioningMedia:
        """Probe and decode the files of `request`.

        Raises:
            UsageError: a size off the model's grid, or too few frames.
            VideoError: a file that cannot be read.
        """
        videos = [_probe_media(uri) for uri in (*request.image, *request.video)]
        size = _size(request, videos, sampler)
        notes = tuple(note for video in videos for note in _crop_notes(video, size))
        if request.image:
            media = [_read_image(video, size) for video in videos]
        else:
            media = [_read_video(video, size) for video in videos]
        new_frames = request.new_frames or 0
        if request.mode in MODES_WITH_NEW_FRAMES and request.new_frames is None:
            new_frames = sampler.default_new_frames(request.mode)
        built = _timeline(request, media, size, new_frames, sampler)
        return cls(
            conditioning=built,
            loop_frames=new_frames if request.mode == "loop" and not request.video else 0,
            new_frames=new_frames,
            media_ids=tuple(video.video_id for video in videos),
            source_THWC=built.frames_THWC if request.mode == "edit" else None,
            notes=(*notes, *built.notes),
        )


def with_source_prompts(
    requests: Sequence[SampleRequest], media: Sequence[ConditioningMedia], captioner: str, *, device: str
) -> tuple[list[SampleRequest], list[ConditioningMedia]]:
    """Requests and media with the captions of videos to invert: those without one are captioned.

    Args:
        captioner: SPEC; "": there is none.

    Raises:
        UsageError: a caption is missing, and there is no captioner.
    """
    found = list(zip(requests, media, strict=True))
    missing = [index for index, request in enumerate(requests) if request.invert and not request.source_prompt.strip()]
    if missing and captioner in ("", "none"):
        raise UsageError(
            "an edit by inversion needs the caption of its video: pass --source-prompt, or --captioner tiny to have it read"
        )
    videos = [media[index].conditioning.frames_THWC for index in missing]
    for index, caption in zip(missing, caption_shots(videos, captioner, device=device) if videos else ()):
        request, one = found[index]
        timeline = dataclasses.replace(one.conditioning, source_text=caption)
        notes = (*one.notes, f"the source is captioned by {captioner}: {caption}")
        one = dataclasses.replace(one, conditioning=timeline, notes=notes)
        found[index] = dataclasses.replace(request, source_prompt=caption), one
    return [request for request, _ in found], [one for _, one in found]


def _timeline(
    request: SampleRequest, media: Sequence[np.ndarray], size: Bucket, new_frames: int, sampler: Sampler
) -> ConditioningFrames:
    """Conditioning frames and frames to generate, by mode."""
    grid = sampler.grid
    if request.mode == "edit":
        strength = (1.0 if request.invert else DEFAULT_STRENGTH) if request.strength is None else request.strength
        return conditioning.video_to_video(
            media[0], strength, grid, source_text=request.source_prompt if request.invert else None
        )
    if request.mode == "inbetween":
        at_frames = _at_frames(request, len(media), size)
        return _ended(conditioning.keyframe_interpolation(media, at_frames, size.num_frames, grid), request, sampler)
    if request.mode == "extend":
        return conditioning.extend(media[0], new_frames, grid)
    if request.mode == "extend-back":
        return conditioning.extend_backward(media[0], new_frames, grid)
    if request.mode == "connect":
        return conditioning.connect(media, new_frames, grid)
    if request.video:
        return conditioning.loop(media[0], new_frames, sampler.overlap_frames, grid)
    if request.image:
        return _ended(conditioning.image_to_video(media[0], size.num_frames, grid), request, sampler)
    return _ended(conditioning.text_to_video(size.num_frames, size.height_px, size.width_px), request, sampler)


def _ended(built: ConditioningFrames, request: SampleRequest, sampler: Sampler) -> ConditioningFrames:
    """With exactly the frames of `request.seconds`: what the grid needs beyond them is sampled and dropped."""
    if not request.seconds:
        return built
    return dataclasses.replace(built, end=sampler.frames_of(request.seconds))


def _at_frames(request: SampleRequest, num_images: int, size: Bucket) -> list[int]:
    if not request.at_seconds:
        num_frames = round(request.seconds * size.fps) or size.num_frames
        return [round(i * (num_frames - 1) / (num_images - 1)) for i in range(num_images)]
    if len(request.at_seconds) != num_images:
        raise UsageError(f"at_seconds has {len(request.at_seconds)} times for {num_images} images")
    return [round(seconds * size.fps) for seconds in request.at_seconds]


def _probe_media(uri: str) -> Video:
    video = probe(uri)
    if video.status != "ok":
        raise UsageError(f"{uri} cannot be used: {video.reason}: {video.detail}")
    return video


def _size(request: SampleRequest, videos: Sequence[Video], sampler: Sampler) -> Bucket:
    """The requested size; by default the area of most training samples, with the aspect ratio of the first file."""
    height_px, width_px = request.height_px, request.width_px
    if videos and not (height_px and width_px):
        height_px, width_px = _size_in_shape(height_px, width_px, videos[0].height_px / videos[0].width_px, sampler)
    num_frames = request.num_frames
    if request.seconds:
        num_frames = supported_length(sampler.frames_of(request.seconds), sampler.grid)
    return sampler.size(num_frames or None, height_px or None, width_px or None)


def _size_in_shape(height_px: int, width_px: int, shape: float, sampler: Sampler) -> tuple[int, int]:
    """(height, width) on the grid with an aspect ratio near `shape` = height / width; a side that is not 0 is fixed.

    Trades cropping against a change of area with the weights of packing/buckets.py.
    """
    usual, (_, patch_rows, patch_columns) = sampler.size(None, None, None), sampler.grid.patch
    step_height, step_width = sampler.grid.spatial_stride * patch_rows, sampler.grid.spatial_stride * patch_columns
    area_px = usual.height_px * usual.width_px
    target_height = width_px * shape if width_px else (area_px * shape) ** 0.5
    heights = [height_px] if height_px else _multiples_around(target_height, step_height)
    sizes = [(h, w) for h in heights for w in ([width_px] if width_px else _multiples_around(h / shape, step_width))]

    def cost(size: tuple[int, int]) -> float:
        cropped = 1 - min(size[0] / size[1] / shape, shape * size[1] / size[0])
        return CROP_WEIGHT * cropped + abs(math.log(size[0] * size[1] / area_px))

    return min(sizes, key=cost)


def _multiples_around(length_px: float, step_px: int) -> list[int]:
    below = int(length_px // step_px) * step_px
    return [size for size in (below, below + step_px) if size]


def _crop_notes(video: Video, size: Bucket) -> list[str]:
    """A note per side that is cropped when the file is scaled to cover `size`."""
    scale = max(size.height_px / video.height_px, size.width_px / video.width_px)
    name, notes = os.path.basename(video.uri), []
    for side, source_px, target_px in (
        ("height", video.height_px, size.height_px),
        ("width", video.width_px, size.width_px),
    ):
        lost = 1 - target_px / (source_px * scale)
        if round(source_px * scale) > target_px:
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
    """The first frames of a file at the model's frame rate, scaled to cover the size and center-cropped."""
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
