"""Energies of a video's sound, as the decoder child measures them and the scores of its clips are computed from.

sound = SoundLevels.from_bytes(payload)
sound.between(12.48, 22.48)                 # (1000, 2): hundredths of a second
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

CELLS_PER_SECOND = 100
AUDIO_COLUMNS = ("has_audio", "audio_codec", "audio_channels", "audio_rate_hz", "num_audio_streams", "audio_detail")
"""Columns of `records.Video`."""


def no_energies() -> np.ndarray:
    """Of a video without sound."""
    return np.zeros((0, 2), np.float32)


@dataclass(frozen=True)
class SoundLevels:
    """Mean squares of each hundredth of a second of a video's best audio stream; nothing where it has none."""

    energies_N2: np.ndarray = field(default_factory=no_energies)
    """float32: of the K-weighted channels, weighted and summed (ITU-R BS.1770-5); and of the loudest channel as it is, where
    full scale is 1. 0 where there is no sound, NaN where it is damaged."""
    start_seconds: float = 0.0
    """Presentation time of the first frame of the video."""

    columns: dict[str, Any] = field(default_factory=dict)
    """`AUDIO_COLUMNS` of the video."""

    @classmethod
    def from_bytes(cls, payload: bytes | bytearray, start_seconds: float, video_fields: dict[str, Any]) -> SoundLevels:
        """The inverse of `energies_N2.tobytes()`, with the columns of audio among those of a video."""
        columns = {name: video_fields[name] for name in AUDIO_COLUMNS if name in video_fields}
        return cls(np.frombuffer(bytes(payload), "<f4").reshape(-1, 2), start_seconds, columns)

    def between(self, start_seconds: float, end_seconds: float) -> np.ndarray:
        """(N, 2): the hundredths of a second of a span."""
        first, last = (round((s - self.start_seconds) * CELLS_PER_SECOND) for s in (start_seconds, end_seconds))
        return self.energies_N2[max(0, first) : max(0, last)]
