"""Which stream is the video, and how wide its pixels are: ffmpeg's own rules.

stream = choose_stream(container)                   # as `ffmpeg -i X out` chooses
square_pixel_width(720, Fraction(64, 45)) -> 1024   # as `-vf scale=iw*sar:ih`
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from av.stream import Disposition

STILL_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
"""Cover art and thumbnails: streams of type video that are not the video."""
DEFAULT_BONUS_PX = 5_000_000
"""How many pixels the default flag weighs in ffmpeg's automatic choice (`map_auto_video` in ffmpeg_mux_init.c)."""
PACKETS_BONUS_PX = 100_000_000
"""How many pixels it weighs that probing met packets of the stream: a format of its pixels is known then."""


def choose_stream(container: Any) -> Any | None:
    """The video stream with the most pixels, where the default flag counts as 5 million; the first of equals.

    As `ffmpeg -i X out`. Not `av_find_best_stream`, which counts bytes and frames that happen to be near the start: only
    what the headers say is compared here.
    """
    streams = [s for s in container.streams.video if not s.disposition & STILL_PICTURES]
    return max(streams, key=_score, default=None)  # the first of the largest


def _score(stream: Any) -> int:
    context = stream.codec_context
    if context is None:  # no decoder
        return -1
    score: int = context.width * context.height
    if context.pix_fmt is not None:
        score += PACKETS_BONUS_PX
    if stream.disposition & Disposition.default:
        score += DEFAULT_BONUS_PX
    return score


def sample_aspect(stream: Any) -> Fraction:
    """Width of a pixel / its height: of the container where it says so, else of the codec; 1 where neither does.

    As `av_guess_sample_aspect_ratio`. To be read after the first frame: some codecs say it only there.
    """
    for ratio in _ratios(stream):
        if ratio is not None and ratio > 0:
            return Fraction(ratio)
    return Fraction(1)


def _ratios(stream: Any) -> Iterable[Fraction | None]:
    yield stream.sample_aspect_ratio
    yield stream.codec_context.sample_aspect_ratio


def square_pixel_width(width_px: int, aspect: Fraction) -> int:
    """Width of the same picture with square pixels at the same height, rounded as `-vf scale=iw*sar:ih`: down."""
    return max(1, int(width_px * (aspect.numerator / aspect.denominator)))


TRANSFER_NAMES = {
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}
"""AVColorTransferCharacteristic (ISO/IEC 23091-2) -> the name that ffprobe prints."""


def transfer_name(frame: Any) -> str:
    """The transfer characteristic of a frame; "" where it does not say."""
    return TRANSFER_NAMES.get(int(frame.color_trc), "")
