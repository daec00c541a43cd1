"""Parameter sets of H.264, HEVC and MPEG-2: whether they allow interlaced frames, and where they are in a packet.

    parameter_sets(extradata, "h264")                  # [b"g...", b"h..."]: SPS and PPS
    may_be_interlaced(extradata, "h264")               # frame_mbs_only_flag == 0
    list(parameter_sets_in(packet_bytes, extradata, "h264"))

Sections of Rec. ITU-T H.264 (04/2017), H.265 (12/2016), H.262 (2000) and ISO/IEC 14496-15 are named where they are used.
"""

from __future__ import annotations

from collections.abc import Iterator

CODECS_WITH_PARAMETER_SETS = frozenset({"h264", "hevc"})
H264_IDR, H264_SPS, H264_PPS = 5, 7, 8
HEVC_PARAMETER_SETS = frozenset({32, 33, 34})
"""VPS, SPS, PPS (H.265, table 7-1)."""
HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
"""profile_idc whose parameter sets describe the colour format (H.264, 7.3.2.1.1)."""
START_CODE = b"\0\0\1"
MPEG2_EXTENSION, MPEG2_SEQUENCE_EXTENSION = START_CODE + b"\xb5", 1
"""H.262, 6.2.2.3: start code of extensions, identifier of the one that describes a sequence."""


class _Bits:
    """Reads a raw byte sequence payload from its first bit."""

    def __init__(self, payload: bytes) -> None:
        self.value, self.left = int.from_bytes(payload), 8 * len(payload)

    def read(self, count: int) -> int:
        """
        Raises:
            ValueError: there are not so many bits.
        """
        self.left -= count
        if self.left < 0:
            raise ValueError("the parameter set ends early")
        return self.value >> self.left & (1 << count) - 1

    def read_exp_golomb(self) -> int:
        """ue(v) of H.264, 9.1."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + (self.read(zeros) if zeros else 0)

    def read_signed_exp_golomb(self) -> int:
        """se(v) of H.264, 9.1.1."""
        code = self.read_exp_golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def may_be_interlaced(extradata: bytes, codec: str) -> bool:
    """Whether frames of the stream can be interlaced, as far as its parameter sets tell; True where they cannot be read.

    False for codecs without interlacing, and for those that say it in every frame alike (MPEG-4).
    """
    try:
        if codec == "h264":
            sets = [unit for unit in parameter_sets(extradata, codec) if _unit_type(unit, codec) == H264_SPS]
            return not sets or any(_h264_allows_fields(unit) for unit in sets)
        if codec == "hevc":
            return _hevc_is_interlaced(extradata)
        return codec == "mpeg2video" and _mpeg2_allows_fields(extradata)
    except (ValueError, IndexError):
        return True


def _h264_allows_fields(unit: bytes) -> bool:
    """frame_mbs_only_flag == 0 (H.264, 7.3.2.1.1)."""
    bits = _Bits(unit[1:64].replace(b"\0\0\3", b"\0\0"))  # emulation prevention (7.4.1)
    profile = bits.read(8)
    bits.read(16)
    bits.read_exp_golomb()  # seq_parameter_set_id
    if profile in HIGH_PROFILES:
        chroma_format = bits.read_exp_golomb()
        if chroma_format == 3:
            bits.read(1)
        bits.read_exp_golomb(), bits.read_exp_golomb(), bits.read(1)
        if bits.read(1):
            for i in range(12 if chroma_format == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    bits.read_exp_golomb()  # log2_max_frame_num_minus4
    order_type = bits.read_exp_golomb()
    if order_type == 0:
        bits.read_exp_golomb()
    elif order_type == 1:
        bits.read(1), bits.read_exp_golomb(), bits.read_exp_golomb()
        for _ in range(bits.read_exp_golomb()):
            bits.read_exp_golomb()
    bits.read_exp_golomb(), bits.read(1), bits.read_exp_golomb(), bits.read_exp_golomb()  # references, size
    return not bits.read(1)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """H.264, 7.3.2.1.1.1."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.read_signed_exp_golomb()) % 256
        last = following or last


def _hevc_is_interlaced(extradata: bytes) -> bool:
    """general_interlaced_source_flag (H.265, 7.3.3)."""
    sets = [unit for unit in parameter_sets(extradata, "hevc") if _unit_type(unit, "hevc") == 33]
    # after the header of the unit: 4 + 3 + 1 bits, profile (1 byte), compatibility (4 bytes), then the flags
    return not sets or any(unit[2:16].replace(b"\0\0\3", b"\0\0")[6] & 0x40 for unit in sets)


def _mpeg2_allows_fields(extradata: bytes) -> bool:
    """progressive_sequence == 0 (H.262, 6.2.2.3); MPEG-1, which has no extension, has no fields either."""
    start = extradata.find(MPEG2_EXTENSION)
    while start >= 0:
        first, second = extradata[start + 4], extradata[start + 5]
        if first >> 4 == MPEG2_SEQUENCE_EXTENSION:
            return not second >> 3 & 1
        start = extradata.find(MPEG2_EXTENSION, start + 4)
    return True


def parameter_sets(extradata: bytes, codec: str) -> list[bytes]:
    """The parameter sets of a stream: from its configuration record (ISO/IEC 14496-15), or with start codes."""
    if not extradata.startswith(b"\1"):
        return list(parameter_sets_in(extradata, b"", codec))
    found: list[bytes] = []
    if codec == "h264":  # 5.3.3.1.2: SPS, then PPS
        position = 5
        for mask in (0x1F, 0xFF):
            count, position = extradata[position] & mask, position + 1
            position = _read_units(extradata, position, count, found)
        return found
    position = 23  # 8.3.3.1.2: arrays of units
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[position + 1 : position + 3])
        position = _read_units(extradata, position + 3, count, found)
    return [unit for unit in found if _unit_type(unit, codec) in HEVC_PARAMETER_SETS]


def _read_units(extradata: bytes, position: int, count: int, found: list[bytes]) -> int:
    for _ in range(count):
        start = position + 2
        position = start + int.from_bytes(extradata[position:start])
        found.append(extradata[start:position].rstrip(b"\0"))
    return position


def parameter_sets_in(packet: bytes, extradata: bytes, codec: str) -> Iterator[bytes]:
    """The parameter sets that a packet of the stream brings along.

    Args:
        extradata: of the stream: tells whether the units of packets have lengths or start codes.
    """
    wanted = HEVC_PARAMETER_SETS if codec == "hevc" else (H264_SPS, H264_PPS)
    for start, end in _unit_spans(packet, extradata, codec):
        if start < end and _unit_type(packet[start : start + 1], codec) in wanted:
            yield packet[start:end].rstrip(b"\0")


def starts_anew(packet: bytes, extradata: bytes, codec: str) -> bool:
    """Whether a keyframe forgets all frames before it: an IDR picture of H.264; every keyframe of other codecs."""
    if codec != "h264":
        return True
    return any(packet[start] & 0x1F == H264_IDR for start, end in _unit_spans(packet, extradata, codec) if start < end)


def _unit_spans(packet: bytes, extradata: bytes, codec: str) -> Iterator[tuple[int, int]]:
    if extradata.startswith(b"\1"):
        num_length_bytes = 1 + (extradata[4 if codec == "h264" else 21] & 3)
        start = num_length_bytes
        while start <= len(packet):
            end = start + int.from_bytes(packet[start - num_length_bytes : start])
            yield start, min(end, len(packet))
            start = end + num_length_bytes
        return
    start = packet.find(START_CODE)
    while start >= 0:
        end = packet.find(START_CODE, start + 3)
        yield start + 3, end if end >= 0 else len(packet)
        start = end


def _unit_type(unit: bytes, codec: str) -> int:
    """nal_unit_type."""
    return unit[0] >> 1 & 0x3F if codec == "hevc" else unit[0] & 0x1F
