"""torchcodec as a decoding backend, on the CPU. It runs in a child of its own, the only one that may import torch.

It decodes with the FFmpeg libraries of the system (versions 4 to 9). Every frame that it delivers carries its presentation
time, which has to be the one that the segment gives to the wanted frame.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

import numpy as np

from recaption.decoding.backends.foreign_log import ForeignLog
from recaption.decoding.backends.interface import FRAME_SECONDS, RefusalError, Segment

BATCH_BYTES = 16 << 20
"""Frames are asked for in batches of about this size."""


def load() -> TorchcodecBackend:
    """
    Raises:
        ImportError: torchcodec is not installed, or the system has no FFmpeg libraries for it.
    """
    return TorchcodecBackend()


class TorchcodecBackend:
    """See `interface.Backend`."""

    def __init__(self) -> None:
        import torch
        from torchcodec._internally_replaced_utils import load_core_libraries
        from torchcodec.decoders import VideoDecoder

        try:
            ffmpeg_version, _ = load_core_libraries()
        except (RuntimeError, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ImportError(f"it finds no shared libraries of FFmpeg (Debian: apt install ffmpeg): {first}") from None
        torch.set_num_threads(1)
        self.decoder: Any = VideoDecoder
        self.log = ForeignLog("/libavutil.so.")
        self.version = f"{importlib.metadata.version('torchcodec')}, FFmpeg {ffmpeg_version} of the system, on the CPU"

    def frames(self, segment: Segment) -> Iterator[np.ndarray]:
        """As `interface.Backend.frames`."""
        self.log.take()
        try:
            yield from self._frames(segment)
        except (RuntimeError, ValueError, IndexError) as error:
            raise RefusalError("refused", str(error).strip().partition("\n")[0][:200]) from None
        if damage := segment.damage(self.log.take()):
            raise RefusalError("damage", damage)

    def _frames(self, segment: Segment) -> Iterator[np.ndarray]:
        decoder = self.decoder(segment.payload, dimension_order="NHWC", device="cpu", num_ffmpeg_threads=1)
        if len(decoder) != segment.num_frames:
            raise RefusalError("mismatch", f"{len(decoder)} frames of {segment.num_frames}")
        height, width = decoder.metadata.height, decoder.metadata.width
        step = max(1, BATCH_BYTES // (height * width * 3))
        for start in range(0, len(segment.wanted), step):
            wanted = segment.wanted[start : start + step]
            batch = decoder.get_frames_at(list(wanted))
            expected = [float((segment.first_tick + i) * FRAME_SECONDS) for i in wanted]
            if not np.allclose(batch.pts_seconds.numpy(), expected, rtol=0, atol=float(FRAME_SECONDS) / 4):
                raise RefusalError("mismatch", f"frames at {batch.pts_seconds.tolist()} instead of {expected}")
            yield from batch.data.numpy()
