"""HLG and PQ video as ordinary BT.709 pictures, by tables: the same bytes on every CPU.

pixels_HWC = rgb_of_yuv(yuv_HWC, Matrix.BT2020, bits=10, is_full_range=False)    # uint16 Y'CbCr -> uint16 R'G'B'
to_sdr(pixels_HWC, Transfer.PQ, Primaries.BT2020)                                # uint16 R'G'B' -> uint8 R'G'B'

1. R'G'B' -> light of the display in cd/m2. PQ: the EOTF of Rec. ITU-R BT.2100-2, table 4. HLG: the inverse OETF and the
   OOTF of table 5, at a nominal peak of 1000 cd/m2 (system gamma 1.2).
2. Primaries of the source -> BT.709, by the matrix that follows from the chromaticities; negative light is cut off.
3. The roll-off (EETF) of Report ITU-R BT.2390-10, 5.4.1, from 1000 to 203 cd/m2, the HDR reference white of Report BT.2408:
   on the largest of the three channels, the other two by the same factor, so hues stay. Up to 92 cd/m2 nothing changes.
4. BT.1886 (a power of 2.4), as `zscale=t=bt709` encodes.

Only IEEE additions and products of float32 are computed, each in one fixed order; every power is a look-up by the upper
bits of a float.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import numpy as np

PEAK_NITS = 1000.0
"""Nominal peak of HLG (BT.2100), and what PQ is taken to be mastered for; brighter light is white."""
WHITE_NITS = 203.0
"""Light of SDR white: HDR reference white."""


class Transfer(IntEnum):
    """AVColorTransferCharacteristic of HDR."""

    PQ = 16
    HLG = 18


class Primaries(IntEnum):
    """AVColorPrimaries that HDR video is made with."""

    BT709 = 1
    BT2020 = 9
    DISPLAY_P3 = 12


TO_BT709 = {
    Primaries.BT709: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    Primaries.BT2020: (
        (1.66049100, -0.58764114, -0.07284986),
        (-0.12455047, 1.13289990, -0.00834942),
        (-0.01815076, -0.10057890, 1.11872966),
    ),
    Primaries.DISPLAY_P3: (
        (1.22494018, -0.22494018, 0.0),
        (-0.04205695, 1.04205695, 0.0),
        (-0.01963755, -0.07863605, 1.09827360),
    ),
}
"""Matrices of linear light: from the chromaticities of BT.2020-2, BT.709-6 and SMPTE EG 432-1, white D65 (SMPTE RP 177)."""


class Matrix(IntEnum):
    """AVColorSpace that HDR video is made with; others are read as BT.2020."""

    BT709 = 1
    BT601 = 5
    BT2020 = 9


LUMA_WEIGHTS = {Matrix.BT709: (0.2126, 0.0722), Matrix.BT601: (0.299, 0.114), Matrix.BT2020: (0.2627, 0.0593)}
"""Of red and blue."""
BT2020_LUMINANCE = (0.2627, 0.6780, 0.0593)
"""Weights of the OOTF of HLG."""

INDEX_SHIFT = 12
"""Bits of a float32 that an index into a table leaves out: 11 bits of mantissa stay, steps of 0.05 %."""
MAX_LIGHT = np.float32(32.0)
"""Last entry of a table. 10000 cd/m2 of the reddest BT.2020 red is 16.6 times `PEAK_NITS` of BT.709 red."""


# --- formulas, float64 ------------------------------------------------------------------------------------------------


def pq_eotf(signal: np.ndarray) -> np.ndarray:
    """cd/m2 of a PQ signal 0..1 (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(signal, 1 / m2)
    return 10000 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)


def pq_inverse_eotf(nits: np.ndarray | np.float64) -> np.ndarray:
    """The PQ signal of light."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(nits / 10000, m1)
    return np.power((c1 + c2 * power) / (1 + c3 * power), m2)


def hlg_inverse_oetf(signal: np.ndarray) -> np.ndarray:
    """Light of the scene, 0..1, of an HLG signal 0..1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def roll_off(nits: np.ndarray) -> np.ndarray:
    """The EETF of BT.2390 from `PEAK_NITS` to `WHITE_NITS`, both blacks at zero."""
    peak = pq_inverse_eotf(np.float64(PEAK_NITS))
    signal = np.minimum(pq_inverse_eotf(nits) / peak, 1.0)
    largest = pq_inverse_eotf(np.float64(WHITE_NITS)) / peak
    knee = 1.5 * largest - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * largest
    return pq_eotf(np.where(signal < knee, signal, spline) * peak)


# --- tables -----------------------------------------------------------------------------------------------------------


def _entries() -> np.ndarray:
    """The float64 that each entry of a table stands for: the middle of the floats with its upper bits; 0 for the first."""
    last = int(MAX_LIGHT.view(np.uint32)) >> INDEX_SHIFT
    indices = np.arange(last + 1, dtype=np.uint32) << INDEX_SHIFT | 1 << (INDEX_SHIFT - 1)
    values = indices.view(np.float32).astype(np.float64)
    values[0] = 0.0
    return values


@cache
def light_of_signal(transfer: Transfer) -> np.ndarray:
    """(65536,) float32. PQ: light of the display, 1 = `PEAK_NITS`. HLG: light of the scene."""
    signal = np.arange(65536) / 65535
    if transfer == Transfer.PQ:
        return (pq_eotf(signal) / PEAK_NITS).astype(np.float32)
    return hlg_inverse_oetf(signal).astype(np.float32)


@cache
def ootf_gain() -> np.ndarray:
    """float32 by luminance of the scene: what makes its light that of the display."""
    return np.power(_entries(), 0.2).astype(np.float32)


@cache
def roll_off_gain() -> np.ndarray:
    """float32 by the largest channel (1 = `PEAK_NITS`): what brings its light to 0..1 of SDR white."""
    light = np.maximum(_entries(), 1e-12)
    return (roll_off(light * PEAK_NITS) / (light * WHITE_NITS)).astype(np.float32)


@cache
def signal_of_light() -> np.ndarray:
    """uint8 of SDR by light, 1 = white."""
    return np.rint(255 * np.power(np.minimum(_entries(), 1.0), 1 / 2.4)).astype(np.uint8)


def _look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The entries for float32 values of 0..`MAX_LIGHT`."""
    return table[values.view(np.uint32) >> INDEX_SHIFT]


def rgb_of_yuv(yuv_HWC: np.ndarray, matrix: Matrix, *, bits: int, is_full_range: bool) -> np.ndarray:
    """uint16 R'G'B' of full range. swscale does the same with coefficients of 13 bits, which costs up to 2 levels of 255.

    Args:
        yuv_HWC: uint16 Y'CbCr, with the most significant bits used.
        bits: how many of them the video has.
    """
    luma_offset, luma_range, chroma_range = 16 << 8, 219 << 8, 224 << 8
    if is_full_range:
        luma_offset, luma_range = 0, ((1 << bits) - 1) << (16 - bits)
        chroma_range = luma_range
    y, cb, cr = (yuv_HWC[..., i].astype(np.float32) for i in range(3))
    y = (y - np.float32(luma_offset)) * np.float32(65535 / luma_range)
    cb, cr = ((c - np.float32(1 << 15)) * np.float32(65535 / chroma_range) for c in (cb, cr))
    red, blue = LUMA_WEIGHTS[matrix]
    green = 1 - red - blue
    channels = (
        y + cr * np.float32(2 - 2 * red),
        y - cb * np.float32(blue * (2 - 2 * blue) / green) - cr * np.float32(red * (2 - 2 * red) / green),
        y + cb * np.float32(2 - 2 * blue),
    )
    rgb = np.stack(channels, axis=-1)
    return np.rint(np.clip(rgb, np.float32(0), np.float32(65535))).astype(np.uint16)


def to_sdr(pixels_HWC: np.ndarray, transfer: Transfer, primaries: Primaries) -> np.ndarray:
    """uint8 BT.709 R'G'B' of full range.

    Args:
        pixels_HWC: uint16 R'G'B' of full range, as the transfer encodes it.
    """
    table = light_of_signal(transfer)
    channels = [table[pixels_HWC[..., i]] for i in range(3)]
    if transfer == Transfer.HLG:
        gain = _look_up(ootf_gain(), _weighted(channels, BT2020_LUMINANCE))
        channels = [channel * gain for channel in channels]
    if primaries != Primaries.BT709:
        channels = [np.maximum(_weighted(channels, row), np.float32(0)) for row in TO_BT709[primaries]]
    largest = np.maximum(np.maximum(channels[0], channels[1]), channels[2])
    gain = _look_up(roll_off_gain(), np.minimum(largest, MAX_LIGHT))
    result = np.empty(pixels_HWC.shape, np.uint8)
    for i, channel in enumerate(channels):
        result[..., i] = _look_up(signal_of_light(), channel * gain)
    return result


def _weighted(channels: list[np.ndarray], weights: tuple[float, ...]) -> np.ndarray:
    first, second, third = (channel * np.float32(weight) for channel, weight in zip(channels, weights, strict=True))
    return first + second + third
