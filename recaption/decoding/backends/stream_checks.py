"""What a backend would show otherwise than PyAV, found before it is asked: from the stream, its first frame, its packets.

    frame_obstacle(frame)                # "hdr", "transparent", "interlaced", "pixel_format" or ""
    check_stream(stream, "h264")         # raises RefusalError("interlaced") where the parameter set allows field coding
    check_packets(stream, packets)       # raises RefusalError("parameters") where a packet changes the parameter sets

Our own pictures are deinterlaced, tone-mapped and laid on white (recaption/decoding/picture); those of decord and torchcodec
are not, or in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recaption.decoding.backends.interface import RefusalError
from recaption.decoding.backends.parameter_sets import (
    CODECS_WITH_PARAMETER_SETS,
    may_be_interlaced,
    parameter_sets,
    parameter_sets_in,
)
from recaption.decoding.packet_index import is_hidden
from recaption.decoding.picture import alpha
from recaption.decoding.picture.scaler import hdr_transfer

CODECS = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video"}
    | {"cinepak", "flv1", "h263", "msmpeg4v2", "msmpeg4v3", "theora", "wmv1", "wmv2"}
)
"""Those that tell whether they are interlaced, or never are. The second row never is, as MPEG-1."""
PIXEL_FORMATS = frozenset(
    {"yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "gbrp", "rgb24", "bgr24"}
    | {"yuv420p10le", "yuv422p10le", "yuv444p10le"}
)
"""Of them RGB comes out as PyAV's, of those of 10 bits with other rounding."""


def frame_obstacle(frame: Any) -> str:
    """Why frames like this one (the first) are left to PyAV; "" where they need not be."""
    if hdr_transfer(frame) is not None:
        return "hdr"
    if alpha.has_alpha(frame):
        return "transparent"
    if frame.interlaced_frame:
        return "interlaced"
    return "" if frame.format.name in PIXEL_FORMATS else "pixel_format"


def check_stream(stream: Any, codec: str) -> None:
    """
    Raises:
        RefusalError: codec; transparent; interlaced, where frames may be, though the first is not.
    """
    if codec not in CODECS:
        raise RefusalError("codec", codec)
    if stream.metadata.get("alpha_mode") == "1":
        raise RefusalError("transparent", "WebM's alpha")
    if may_be_interlaced(bytes(stream.codec_context.extradata or b""), codec):
        raise RefusalError("interlaced", "its parameter sets allow fields")


def check_packets(stream: Any, packets: Sequence[Any]) -> None:
    """
    Raises:
        RefusalError: hidden_frames, a packet without a frame; parameters, the stream changes on its way (its size, say).
    """
    codec = stream.codec_context.codec.canonical_name
    if any(is_hidden(codec, packet) for packet in packets if codec in ("vp8", "vp9")):
        raise RefusalError("hidden_frames", f"a {codec} packet that is never displayed")
    if codec not in CODECS_WITH_PARAMETER_SETS:
        return
    extradata = bytes(stream.codec_context.extradata or b"")
    known = set(parameter_sets(extradata, codec))
    for packet in packets:
        if packet.has_sidedata("new_extradata") or not known.issuperset(
            parameter_sets_in(bytes(packet), extradata, codec)
        ):
            raise RefusalError("parameters", "parameter sets change on the way")
