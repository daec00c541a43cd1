"""Decodes the packets of one stream, and refuses every frame whose data are damaged.

decoder = CheckedDecoder(stream, "h264", limits, may_start_mid_gop=False)
for frame in decoder.frames(container.demux(stream)): ...

Decoders conceal what they can: what they flag, what they only log, and what they leave out is an error here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import av
import numpy as np

from recaption.decoding.damage.used_buffers import CODECS_WITH_HOLES, UsedBuffers
from recaption.decoding.libav_log import CODECS_THAT_HIDE_DAMAGE, ERROR_LOG, is_out_of_memory, undecoded_fraction
from recaption.decoding.messages import limit_text
from recaption.errors import VideoError

CODECS_WITHOUT_CHECKSUMS = frozenset({"vp8", "ffv1"})
"""Where data end inside a frame these decoders output uninitialised memory, and report it, if at all, only when decoding
in slices. Each packet is therefore decoded twice (with 2 threads and with 1): a difference is damage."""
MAX_ZEROS = {"h264": 64, "hevc": 64, "gif": 512, "vp8": 512, "vp9": 512}
"""Longer runs of zero bytes are a hole in the data, which HEVC, VP9 and GIF decode to a picture without a word. H.264 and
HEVC never have three zero bytes in a row (emulation prevention: H.264, 7.4.1; HEVC, 7.4.2), a GIF has a length in every 256
bytes, VP8 and VP9 code arithmetically; 450 intact files of these codecs have no run of 64."""
CODECS_WITH_START_CODES = frozenset({"h264", "hevc"})
"""Where their units have start codes instead of lengths, zeros between them are padding."""
MIN_HOLE_BYTES = 64
"""Zero bytes in a row that intact packets do not have."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders of these codecs drop the alpha that WebM stores beside each frame."""


class CheckedDecoder:
    """One run of packets, from the start of the stream or from a keyframe.

    Args:
        may_start_mid_gop: frames before the first that decodes may be undecodable.
    """

    def __init__(self, stream: Any, codec: str, limits: dict[str, Any], *, may_start_mid_gop: bool) -> None:
        self.stream, self.codec, self.limits = stream, codec, limits
        self.may_start_mid_gop = may_start_mid_gop
        self.num_decoded = 0
        self.used_buffers = UsedBuffers()
        has_lengths = bytes(stream.codec_context.extradata or b"").startswith(b"\1")
        self.max_zeros = MAX_ZEROS.get(codec) if has_lengths or codec not in CODECS_WITH_START_CODES else None
        self.second_decoder: Any = None
        """For codecs without checksums; opened once the first is."""
        self.alpha_decoder: Any = None
        if codec in ALPHA_DECODERS and stream.metadata.get("alpha_mode") == "1":
            self.alpha_decoder = _open_decoder(ALPHA_DECODERS[codec], stream.codec_context)

    def frames(self, packets: Iterator[Any]) -> Generator[Any]:
        """Frames in display order.

        Args:
            packets: the last one may be None: what the decoder still holds is a frame too, but its data follow no more.

        Raises:
            VideoError: unreadable where no frame decodes at all, truncated where damage follows good frames; too_large.
        """
        failure = ""
        hides_damage = self.codec in CODECS_THAT_HIDE_DAMAGE
        ERROR_LOG.lines.clear()
        while True:
            try:
                packet = next(packets, _END)
                if packet is _END:
                    break
                frames = self._decode(packet)
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError) or is_out_of_memory(self.limits["max_memory_bytes"]):
                    raise MemoryError from None
                failure = error_text(error)
                if self.num_decoded:
                    detail = f"decoding fails after {self.num_decoded} frames: {failure}"
                    raise VideoError("truncated", detail) from None
                if self.may_start_mid_gop:
                    continue
                break
            if self.may_start_mid_gop and not self.num_decoded:
                ERROR_LOG.lines.clear()
            elif hides_damage and ERROR_LOG.lines:
                raise VideoError("truncated", f"damage near frame {self.num_decoded}: {ERROR_LOG.lines[0]}")
            for frame in frames:
                self._check(frame)
                self.num_decoded += 1
                yield frame
                if self.codec in CODECS_WITH_HOLES:
                    self.used_buffers.blank(frame)
        if failure and not self.num_decoded:
            raise VideoError("unreadable", f"no frame decodes: {failure}")

    def _check(self, frame: Any) -> None:
        check_size(frame.height, frame.width, self.limits["max_pixels"])
        if frame.is_corrupt:
            detail = f"frame {self.num_decoded} is damaged: the decoder had to conceal errors"
            raise VideoError("truncated", detail)
        if self.codec in CODECS_THAT_HIDE_DAMAGE and (share := undecoded_fraction(frame)):
            raise VideoError("truncated", f"{share:.0%} of frame {self.num_decoded} was never decoded")

    def _decode(self, packet: Any) -> list[Any]:
        context = self.stream.codec_context
        if self.max_zeros is not None and packet is not None and find_hole(packet, self.max_zeros) >= 0:
            reason = "truncated" if self.num_decoded else "unreadable"
            raise VideoError(reason, f"a packet after frame {self.num_decoded} has a hole of zeros")
        frames: list[Any] = context.decode(None) if packet is None else packet.decode()
        if self.second_decoder is None and self.codec in CODECS_WITHOUT_CHECKSUMS:
            self.second_decoder = _open_decoder(context.name, context)
        if self.second_decoder is not None and not _frames_equal(frames, self.second_decoder.decode(packet)):
            self._fail_as_different()
        if self.alpha_decoder is not None:
            with_alpha: list[Any] = self.alpha_decoder.decode(packet)
            if not _luma_equal(frames, with_alpha):
                self._fail_as_different()
            for frame, other in zip(frames, with_alpha, strict=True):
                other.pts, other.duration, other.time_base = frame.pts, frame.duration, frame.time_base
            return with_alpha
        return frames

    def _fail_as_different(self) -> None:
        raise VideoError("truncated", f"two decodes of frame {self.num_decoded} differ: its data are damaged")


_END = object()


def find_hole(packet: Any, num_bytes: int = MIN_HOLE_BYTES) -> int:
    """Where a run of so many zero bytes starts in a packet; -1 where there is none."""
    return bytes(packet).find(bytes(num_bytes))


def check_size(height_px: int, width_px: int, max_pixels: int) -> None:
    """Refuse frames of more than `max_pixels`."""
    if height_px * width_px > max_pixels:
        raise VideoError(
            "too_large", f"{width_px}x{height_px} pixels, more than {limit_text('max_pixels', max_pixels)}"
        )


def error_text(error: BaseException) -> str:
    """libav's message, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def _open_decoder(name: str, context: Any) -> Any:
    second = av.CodecContext.create(name, "r")
    second.extradata, second.width, second.height, second.thread_count = (
        context.extradata,
        context.width,
        context.height,
        1,
    )
    return second


def _frames_equal(frames: list[Any], others: list[Any]) -> bool:
    pairs = zip(frames, others, strict=False)
    return len(frames) == len(others) and all(np.array_equal(a.to_ndarray(), b.to_ndarray()) for a, b in pairs)


def _luma_equal(frames: list[Any], others: list[Any]) -> bool:
    pairs = zip(frames, others, strict=False)
    return len(frames) == len(others) and all(np.array_equal(_luma(a), _luma(b)) for a, b in pairs)


def _luma(frame: Any) -> np.ndarray:
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
