"""HLG and PQ become SDR by the formulas of BT.2100 and BT.2390, written out here once more in float64, pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from video_files import ffmpeg_pixels, needs_ffmpeg, write_frames

from recaption.decoding.picture.hdr import TO_BT709, Primaries, Transfer, to_sdr
from recaption.video_io.reader import probe, read_frames, scan

TRANSFERS = {"smpte2084": Transfer.PQ, "arib-std-b67": Transfer.HLG}


# --- the oracle -------------------------------------------------------------------------------------------------------


def pq_to_nits(signal: float) -> float:
    m1, m2 = 0.1593017578125, 78.84375
    c1, c2, c3 = 0.8359375, 18.8515625, 18.6875
    root = signal ** (1 / m2)
    return 10000 * (max(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def nits_to_pq(nits: float) -> float:
    m1, m2 = 0.1593017578125, 78.84375
    c1, c2, c3 = 0.8359375, 18.8515625, 18.6875
    power = (nits / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg_to_scene(signal: float) -> float:
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * math.log(4 * a)
    return signal * signal / 3 if signal <= 0.5 else (math.exp((signal - c) / a) + b) / 12


def rolled_off(nits: float) -> float:
    """BT.2390, 5.4.1: from a display of 1000 cd/m2 to one of 203 cd/m2."""
    white = nits_to_pq(1000)
    e1, largest = min(nits_to_pq(nits) / white, 1.0), nits_to_pq(203) / white
    knee = 1.5 * largest - 0.5
    if e1 >= knee:
        t = (e1 - knee) / (1 - knee)
        h00, h10, h01 = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t, -2 * t**3 + 3 * t**2
        e1 = h00 * knee + h10 * (1 - knee) + h01 * largest
    return pq_to_nits(e1 * white)


def matrix_to_bt709(red, green, blue) -> np.ndarray:
    """From the chromaticities of the three primaries; white is D65 on both sides."""

    def to_xyz(corners) -> np.ndarray:
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T
        white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * np.linalg.solve(columns, white)

    return np.linalg.inv(to_xyz([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])) @ to_xyz([red, green, blue])


BT2020 = matrix_to_bt709((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))


def sdr_of(signal_rgb: np.ndarray, transfer: str, to_bt709: np.ndarray = BT2020) -> np.ndarray:
    """(3,) float64 of 0..255 for one pixel of 0..1."""
    if transfer == "smpte2084":
        nits = np.array([pq_to_nits(float(s)) for s in signal_rgb])
    else:
        scene = np.array([hlg_to_scene(float(s)) for s in signal_rgb])
        luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
        nits = 1000 * luminance**0.2 * scene
    nits = np.maximum(to_bt709 @ nits, 0)
    if nits.max() > 0:
        nits = nits * (rolled_off(float(nits.max())) / nits.max())
    return 255 * np.minimum(nits / 203, 1) ** (1 / 2.4)


def oracle(pixels_HWC: np.ndarray, transfer: str, to_bt709: np.ndarray = BT2020) -> np.ndarray:
    flat = pixels_HWC.reshape(-1, 3)
    return np.array([sdr_of(pixel, transfer, to_bt709) for pixel in flat]).reshape(pixels_HWC.shape)


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_the_tables_are_within_one_level_of_the_formulas(transfer: str) -> None:
    rng = np.random.default_rng(5)
    colours = rng.integers(0, 65536, (60, 40, 3))
    colours[:20] = colours[:20] ** 3 // 65535**2  # dark ones
    colours[20:30] = colours[20:30, :, :1]  # greys
    colours[30, :8] = [[r, g, b] for r in (0, 65535) for g in (0, 65535) for b in (0, 65535)]
    ours = to_sdr(colours.astype(np.uint16), TRANSFERS[transfer], Primaries.BT2020)
    difference = np.abs(ours - oracle(colours / 65535, transfer))
    assert difference.max() <= 1.0
    assert difference.mean() < 0.3


def test_the_matrices_are_those_of_the_chromaticities() -> None:
    np.testing.assert_allclose(TO_BT709[Primaries.BT2020], BT2020, atol=1e-7)
    display_p3 = matrix_to_bt709((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
    np.testing.assert_allclose(TO_BT709[Primaries.DISPLAY_P3], display_p3, atol=1e-7)
    colours = np.random.default_rng(1).integers(0, 65536, (8, 8, 3))
    ours = to_sdr(colours.astype(np.uint16), Transfer.PQ, Primaries.DISPLAY_P3)
    assert np.abs(ours - oracle(colours / 65535, "smpte2084", display_p3)).max() <= 1.0


def test_greys_rise_and_reference_white_is_bright() -> None:
    ramp = np.arange(0, 65536, 64, np.uint16)[None, :, None].repeat(3, axis=2)
    for transfer, white in ((Transfer.PQ, nits_to_pq(203)), (Transfer.HLG, 0.75)):
        grey = to_sdr(ramp, transfer, Primaries.BT2020)[0]
        assert (np.ptp(grey, axis=1) == 0).all(), "a grey has a tint"
        assert (np.diff(grey[:, 0].astype(int)) >= 0).all()
        assert (grey[0, 0], grey[-1, 0]) == (0, 255)
        assert 220 <= grey[round(white * 1023), 0] <= 235


# --- files ------------------------------------------------------------------------------------------------------------


def patches(height_px: int = 48, width_px: int = 64) -> np.ndarray:
    """(height, width, 3) uint16 Y'CbCr of limited range: patches of 8x8, colours and greys up to white."""
    rng = np.random.default_rng(8)
    luma = rng.integers(64, 941, (height_px // 8, width_px // 8))
    chroma = rng.integers(-120, 121, (2, height_px // 8, width_px // 8))
    chroma[:, ::2] = 0
    return 64 * np.stack([luma, *(512 + chroma)], axis=-1).astype(np.uint16).repeat(8, axis=0).repeat(8, axis=1)


def write_hdr(path: Path, yuv_HWC: np.ndarray, transfer: str) -> Path:
    def tag(context) -> None:
        context.color_trc, context.color_primaries = int(TRANSFERS[transfer]), 9
        context.colorspace, context.color_range = 9, 1

    frames = [yuv_HWC] * 3
    return write_frames(
        path, frames, codec="ffv1", pixel_format="yuv444p16le", source_format="yuv444p16le", gop_size=1, setup=tag
    )


def rgb_of(yuv_HWC: np.ndarray) -> np.ndarray:
    """(height, width, 3) 0..1: BT.2020 non-constant luminance, limited range."""
    luma, blue, red = np.moveaxis(yuv_HWC / 64, -1, 0)
    y, cb, cr = (luma - 64) / 876, (blue - 512) / 896, (red - 512) / 896
    r, b = y + 1.4746 * cr, y + 1.8814 * cb
    return np.clip(np.stack([r, (y - 0.2627 * r - 0.0593 * b) / 0.6780, b], axis=-1), 0, 1)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_hdr_video_is_read_as_sdr(tmp_path: Path, transfer: str) -> None:
    yuv_HWC = patches()
    path = write_hdr(tmp_path / "hdr.mkv", yuv_HWC, transfer)
    video = probe(path)
    assert (video.status, video.transfer) == ("ok", transfer)
    pixels_HWC = read_frames(path, [1]).pixels_THWC[0]
    colours = rgb_of(yuv_HWC)[4::8, 4::8]
    assert np.abs(pixels_HWC[4::8, 4::8] - oracle(colours, transfer)).max() <= 1.0
    assert np.array_equal(pixels_HWC, read_frames(path, None).pixels_THWC[1])
    scanned = scan(path, small_px=48)
    assert scanned.video == video
    assert np.array_equal(scanned.small.pixels_THWC[1], pixels_HWC)
    small = read_frames(path, [0], short_side_px=24).pixels_THWC[0]
    assert np.abs(small.astype(float).mean((0, 1)) - pixels_HWC.astype(float).mean((0, 1))).max() < 6


@needs_ffmpeg
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_hdr_video_looks_like_that_of_zscale_and_tonemap(tmp_path: Path, transfer: str, capsys) -> None:
    path = write_hdr(tmp_path / "hdr.mkv", patches(), transfer)
    chain = "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=tonemap=mobius:desat=0,"
    try:
        theirs = ffmpeg_pixels(path, chain + "zscale=t=bt709:m=bt709:r=tv,format=yuv444p", 48, 64)[0]
    except Exception:
        pytest.skip("this ffmpeg has no zscale")
    ours = read_frames(path, [0]).pixels_THWC[0]
    difference = float(np.abs(ours.astype(int) - theirs).mean())
    with capsys.disabled():
        print(f"\n{transfer}: mean difference to ffmpeg's zscale + tonemap=mobius: {difference:.1f} of 255")
    assert difference < 25


@pytest.mark.parametrize("code", [1, 6, 14])
def test_other_transfers_are_read_as_they_are(tmp_path: Path, code: int) -> None:
    yuv_HWC = patches()

    def tag(context) -> None:
        context.color_trc, context.colorspace, context.color_range = code, 9, 1

    path = write_frames(
        tmp_path / "sdr.mkv",
        [yuv_HWC] * 2,
        codec="ffv1",
        pixel_format="yuv444p16le",
        source_format="yuv444p16le",
        setup=tag,
    )
    expected = 255 * rgb_of(yuv_HWC)[4::8, 4::8]
    assert np.abs(read_frames(path, [0]).pixels_THWC[0, 4::8, 4::8] - expected).max() <= 2
    assert probe(path).transfer == {1: "bt709", 6: "smpte170m", 14: "bt2020-10"}[code]
