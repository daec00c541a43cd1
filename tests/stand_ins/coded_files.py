"""Small videos of rendered scenes, encoded as a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from recaption.scenes.renderer import SIMPLE, render

X264 = {"sc_threshold": "0", "bf": "3", "g": "12", "x264-params": "mbtree=0"}
"""A keyframe every 12 frames, three B-frames between others."""


def scene_frames(num_frames: int = 36, *, height_px: int = 64, width_px: int = 96, seed: int = 3) -> np.ndarray:
    return render(seed, num_frames=num_frames, height_px=height_px, width_px=width_px, fps=24, **SIMPLE).frames_THWC


def write_coded(
    path: Path,
    frames_THWC: np.ndarray,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    change_frame: Callable[[Any], None] = lambda frame: None,
) -> str:
    """Write frames at 24 fps.

    Args:
        change_frame: gets every frame before it is encoded.
    """
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=24)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        stream.options = X264 if options is None and codec == "libx264" else options or {}
        if rotation:
            stream.set_display_rotation(rotation)
        for frame_HWC in frames_THWC:
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24").reformat(format=pix_fmt)
            change_frame(frame)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return str(path)
