"""What the `ffmpeg` program itself decodes, as tiny pictures: the truth that our frames are held against.

truth = ffmpeg_pictures(path).pictures_NHWC   # (N, 16, 16, 3) uint8 RGB, every frame that ffmpeg shows
difference(ours, truth)                     # "" where count and every frame agree, else what does not
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SIDE_PX = 16
MAX_MEAN_DIFFERENCE = 8.0
"""Levels (0..255), mean over one picture. Two scalers and two colour conversions differ by up to 2 on real footage and
by 4.2 on a test pattern of hard edges, the same in every frame."""
MAX_STAND_OUT = 4.0
"""How much more than the median frame of its file one frame may differ."""
NEIGHBOURS = (-2, -1, 1, 2)


@dataclass(frozen=True)
class FfmpegRun:
    pictures_NHWC: np.ndarray
    complaint: str
    """Last line that ffmpeg printed as an error, empty where it had none."""


def ffmpeg_pictures(path: Path, *, timeout_seconds: float = 300.0) -> FfmpegRun:
    """Every frame of the first video stream as ffmpeg shows it: rotation and edit lists applied, none doubled or dropped."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", str(path), "-map", "0:v:0"]
    command += ["-vf", f"scale={SIDE_PX}:{SIDE_PX}:flags=area+accurate_rnd+full_chroma_int,format=rgb24"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    done = subprocess.run(command, capture_output=True, timeout=timeout_seconds, check=False)
    num_bytes = SIDE_PX * SIDE_PX * 3
    num_frames = len(done.stdout) // num_bytes
    pictures = np.frombuffer(done.stdout[: num_frames * num_bytes], np.uint8).reshape(-1, SIDE_PX, SIDE_PX, 3)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return FfmpegRun(pictures, lines[-1] if lines else "")


def tiny(pixels_THWC: np.ndarray) -> np.ndarray:
    """(T, 16, 16, 3) uint8."""
    size = (SIDE_PX, SIDE_PX)
    return np.stack([cv2.resize(np.ascontiguousarray(f), size, interpolation=cv2.INTER_AREA) for f in pixels_THWC])


def difference(ours_NHWC: np.ndarray, truth_NHWC: np.ndarray) -> str:
    """Where two decodes of one file do not show the same frames, in words; empty where they do.

    Brightness may follow another curve (full or limited range, HDR): one gain and offset per file is taken out first.
    A frame is wrong where it is far from its own picture, or clearly nearer to that of a neighbour.
    """
    if len(ours_NHWC) != len(truth_NHWC):
        return f"{len(ours_NHWC)} frames, ffmpeg shows {len(truth_NHWC)}"
    ours, truth = ours_NHWC.astype(np.float64), truth_NHWC.astype(np.float64)
    if truth.std() > 1:
        gain, offset = np.polyfit(ours.ravel(), truth.ravel(), 1)
        ours = gain * ours + offset
    own_N = np.abs(ours - truth).mean(axis=(1, 2, 3))
    if len(own_N) and own_N.max() > min(MAX_MEAN_DIFFERENCE, MAX_STAND_OUT + float(np.median(own_N))):
        return f"frame {int(own_N.argmax())} differs by {own_N.max():.1f} levels"
    for step in NEIGHBOURS:
        here = slice(max(0, -step), len(ours) - max(0, step))
        there = slice(max(0, step), len(ours) - max(0, -step))
        apart_N = np.abs(ours[here] - truth[there]).mean(axis=(1, 2, 3))
        nearer = np.flatnonzero(apart_N + 1.0 < own_N[here])
        if len(nearer):
            return f"frame {int(nearer[0]) + here.start} looks like frame {int(nearer[0]) + there.start}"
    return ""
