"""Pictures of some frames of a video by its backend: packets out of PyAV's index, decoded, scaled, turned.

for pixels_HWC in backend_frames(video, times, np.array([0, 24]), (144, 256)): ...
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recaption.decoding.backends.interface import RefusalError
from recaption.decoding.backends.rgb_scaler import RgbScaler
from recaption.decoding.backends.segments import segments
from recaption.decoding.packet_index import FrameTimes
from recaption.decoding.video_file import VideoFile


def backend_frames(
    video: VideoFile, times: FrameTimes, indices: np.ndarray, scaled: tuple[int, int]
) -> Iterator[np.ndarray]:
    """uint8 RGB as displayed, (height, width) = `scaled`, of the frames with these indices (ascending, unique).

    Raises:
        RefusalError: at any time. Then none of the frames counts, those that came before neither.
    """
    assert video.backend is not None
    scaler = RgbScaler(times.orientation, *scaled)
    stored_height_px = times.orientation.size(times.height_px, times.width_px)[0]
    for segment in segments(video, times, indices):
        if segment.size[0] != stored_height_px:
            raise RefusalError("mismatch", "the header has another size than the first frame")
        num_frames = 0
        for pixels_HWC in video.backend.frames(segment):
            if pixels_HWC.shape != (*segment.size, 3):
                raise RefusalError("mismatch", f"a frame of shape {pixels_HWC.shape}")
            yield scaler(pixels_HWC)
            num_frames += 1
        if num_frames != len(segment.wanted):
            raise RefusalError("mismatch", f"{num_frames} of {len(segment.wanted)} frames came")
