"""Reference frames from the `ffmpeg` program, as thumbnails of 16x16, and their comparison with ours.

reference = ffmpeg_thumbnails(path, video).thumbnails_NHWC   # (N, 16, 16, 3) uint8 RGB, every frame that ffmpeg decodes
difference(thumbnails(ours), reference)                      # "" where count and every frame agree, else what differs
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from recaption.records import Video

SIDE_PX = 16
MAX_MEAN_DIFFERENCE = 8.0
"""Levels (0..255), mean over one frame. Two scalers and two colour conversions differ by up to 2 on real footage and
by 4.2 on a test pattern of hard edges, the same in every frame."""
MAX_MEAN_DIFFERENCE_HDR = 16.0
"""Two ways to show HDR as SDR differ more: 12 on saturated bars."""
MAX_ABOVE_MEDIAN = 4.0
"""Levels by which the difference of one frame may exceed the median of its file."""
NEIGHBOUR_OFFSETS = (-2, -1, 1, 2)


@dataclass(frozen=True)
class FfmpegRun:
    """What one run of ffmpeg decoded and reported."""

    thumbnails_NHWC: np.ndarray
    error: str
    """Last line that ffmpeg printed as an error, "" where there is none."""


DEINTERLACE = "yadif=mode=send_frame:deint=interlaced"
ON_WHITE = "format=rgba,split[a][b];[a]lutrgb=r=255:g=255:b=255:a=255[c];[c][b]overlay=format=gbrp"
TO_SDR = (
    "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=tonemap=mobius:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv444p"
)


def is_hdr(video: Video) -> bool:
    return video.transfer in ("smpte2084", "arib-std-b67")


def filters_for(video: Video) -> str:
    """The filters that show a video as people see it; the size does not matter for thumbnails."""
    filters = [DEINTERLACE] if video.is_interlaced else []
    if is_hdr(video):
        filters.append(TO_SDR)
    if video.has_alpha:
        filters.append(ON_WHITE)
    return ",".join(filters or ["null"])


def decoder_for(video: Video) -> list[str]:
    """FFmpeg's own decoders of VP8 and VP9 drop the alpha."""
    decoders = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
    return ["-c:v", decoders[video.codec]] if video.has_alpha and video.codec in decoders else []


def ffmpeg_thumbnails(path: Path, video: Video, *, timeout_seconds: float = 300.0) -> FfmpegRun:
    """All frames of the stream that ffmpeg chooses, as displayed: rotation and edit lists applied, none repeated or lost."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", *decoder_for(video), "-i", str(path)]
    command += ["-an", "-sn", "-dn"]
    scale = f"scale={SIDE_PX}:{SIDE_PX}:flags=area+accurate_rnd+full_chroma_int,format=rgb24"
    command += ["-vf", f"{filters_for(video)},{scale}"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    done = subprocess.run(command, capture_output=True, timeout=timeout_seconds, check=False)
    num_bytes = SIDE_PX * SIDE_PX * 3
    num_frames = len(done.stdout) // num_bytes
    frames = np.frombuffer(done.stdout[: num_frames * num_bytes], np.uint8).reshape(-1, SIDE_PX, SIDE_PX, 3)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return FfmpegRun(frames, lines[-1] if lines else "")


def thumbnails(pixels_THWC: np.ndarray) -> np.ndarray:
    """Frames scaled to (T, 16, 16, 3) uint8."""
    size = (SIDE_PX, SIDE_PX)
    return np.stack([cv2.resize(np.ascontiguousarray(f), size, interpolation=cv2.INTER_AREA) for f in pixels_THWC])


def difference(ours_NHWC: np.ndarray, reference_NHWC: np.ndarray, *, hdr: bool = False) -> str:
    """How two decodes of one file differ, in words; "" where they have the same frames.

    Brightness may follow another curve (full or limited range, HDR): one gain and offset per file is fitted first.
    A frame is wrong where it is far from its own reference, or clearly nearer to that of a neighbour.
    """
    if len(ours_NHWC) != len(reference_NHWC):
        return f"{len(ours_NHWC)} frames, ffmpeg decodes {len(reference_NHWC)}"
    ours, reference = ours_NHWC.astype(np.float64), reference_NHWC.astype(np.float64)
    if reference.std() > 1:
        gain, offset = np.polyfit(ours.ravel(), reference.ravel(), 1)
        ours = gain * ours + offset
    own_N = np.abs(ours - reference).mean(axis=(1, 2, 3))
    most = MAX_MEAN_DIFFERENCE_HDR if hdr else MAX_MEAN_DIFFERENCE
    if len(own_N) and own_N.max() > min(most, MAX_ABOVE_MEDIAN + float(np.median(own_N))):
        return f"frame {int(own_N.argmax())} differs by {own_N.max():.1f} levels"
    for step in NEIGHBOUR_OFFSETS:
        here = slice(max(0, -step), len(ours) - max(0, step))
        there = slice(max(0, step), len(ours) - max(0, -step))
        apart_N = np.abs(ours[here] - reference[there]).mean(axis=(1, 2, 3))
        nearer = np.flatnonzero(apart_N + 1.0 < own_N[here])
        if len(nearer):
            return f"frame {int(nearer[0]) + here.start} looks like frame {int(nearer[0]) + there.start}"
    return ""
