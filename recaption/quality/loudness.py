"""Loudness and silence of a clip, from the energies of its video's sound.

    sound_scores(sound, 12.48, 22.48)                # (-23.1, 0.04)

Integrated loudness after ITU-R BS.1770-5, annex 1: mean squares of K-weighted blocks of 0.4 s that overlap by three
quarters; blocks below -70 LUFS do not count, then those more than 10 LU below the mean of the others do not.
"""

from __future__ import annotations

import numpy as np

from recaption.decoding.audio.sound import CELLS_PER_SECOND, SoundLevels

BLOCK_SECONDS, HOP_SECONDS = 0.4, 0.1
OFFSET_LUFS = -0.691
"""So that a tone of 997 Hz at full scale in one channel has -3.01 LUFS."""
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
SILENCE_DB = -60.0
"""Of full scale: the default of FFmpeg's `silencedetect`."""


def sound_scores(
    sound: SoundLevels | None, start_seconds: float, end_seconds: float
) -> tuple[float | None, float | None]:
    """(loudness in LUFS, fraction of silence) of a span. Damaged hundredths of a second do not count."""
    if sound is None or not len(sound.energies_N2):
        return None, 1.0
    energies_N2 = sound.between(start_seconds, end_seconds)
    is_known = np.isfinite(energies_N2[:, 1])
    if not is_known.any():
        return None, None
    loudest_N = energies_N2[is_known, 1]
    return integrated_loudness(energies_N2[:, 0]), float((loudest_N <= 10 ** (SILENCE_DB / 10)).mean())


def integrated_loudness(weighted_N: np.ndarray) -> float | None:
    """LUFS of mean squares of hundredths of a second; None where no block passes the gates. NaN: not known."""
    length, hop = round(BLOCK_SECONDS * CELLS_PER_SECOND), round(HOP_SECONDS * CELLS_PER_SECOND)
    if len(weighted_N) < length:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(weighted_N.astype(np.float64), length)[::hop]
    blocks = windows.mean(axis=1)
    blocks = blocks[np.isfinite(blocks)]
    blocks = blocks[blocks > _energy(ABSOLUTE_GATE_LUFS)]
    if not len(blocks):
        return None
    blocks = blocks[blocks > blocks.mean() * 10 ** (RELATIVE_GATE_LU / 10)]
    return OFFSET_LUFS + 10 * float(np.log10(blocks.mean()))


def _energy(lufs: float) -> float:
    return 10 ** ((lufs - OFFSET_LUFS) / 10)
