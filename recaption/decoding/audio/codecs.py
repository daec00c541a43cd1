"""What has to be known of compressed audio to copy it: AAC's configuration, ADTS headers, the length of Opus packets.

parse_aac_config(b"\\x11\\x90")              # AacConfig(object_type=2, channels=2, has_short_frames=False)
without_adts(packet)                        # (AacConfig, the raw frame) of a packet of MPEG-TS
num_opus_samples(b"\\xfc...")                # 960
"""

from __future__ import annotations

from typing import NamedTuple

AAC_LOW_COMPLEXITY = 2
"""Audio object type of AAC-LC (ISO/IEC 14496-3, table 1.17)."""
EXPLICIT_RATE, ESCAPED_TYPE = 15, 31
ADTS_HEADER_BYTES, ADTS_CHECKSUM_BYTES = 7, 2
OPUS_RATE_HZ = 48_000


class AacConfig(NamedTuple):
    """The part of an AudioSpecificConfig that decides whether packets can be copied."""

    object_type: int
    channels: int
    """0: described in the packets themselves."""
    has_short_frames: bool
    """960 samples a frame, not 1024."""

    @property
    def is_plain(self) -> bool:
        """AAC-LC with one of the usual channel layouts."""
        return self.object_type == AAC_LOW_COMPLEXITY and 1 <= self.channels <= 6 and not self.has_short_frames


def parse_aac_config(config: bytes) -> AacConfig | None:
    """The start of an AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1); None where it is too short."""
    bits = int.from_bytes(config[:8].ljust(8, b"\0"), "big")
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return bits >> (64 - position) & (1 << count) - 1

    if len(config) < 2:
        return None
    object_type = take(5)
    if object_type == ESCAPED_TYPE:
        object_type = 32 + take(6)
    if take(4) == EXPLICIT_RATE:
        take(24)
    channels = take(4)
    return AacConfig(object_type, channels, bool(take(1)))


def without_adts(packet: bytes) -> tuple[AacConfig, bytes] | None:
    """(configuration, raw frame) of a packet with an ADTS header (ISO/IEC 14496-3, 1.A.3.2); None where it has none."""
    if len(packet) <= ADTS_HEADER_BYTES or packet[0] != 0xFF or packet[1] & 0xF6 != 0xF0:
        return None
    if packet[6] & 3:  # several frames in one
        return None
    num_header = ADTS_HEADER_BYTES + (0 if packet[1] & 1 else ADTS_CHECKSUM_BYTES)
    channels = (packet[2] & 1) << 2 | packet[3] >> 6
    return AacConfig((packet[2] >> 6) + 1, channels, has_short_frames=False), packet[num_header:]


def num_opus_samples(packet: bytes) -> int:
    """Samples of a packet at 48 kHz, by its first bytes (RFC 6716, 3.1 and 3.2); 0 where it is none."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        samples = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        samples = (480, 960)[config & 1]
    else:
        samples = (120, 240, 480, 960)[config & 3]
    if code < 3:
        return samples * (1 if code == 0 else 2)
    return samples * (packet[1] & 63) if len(packet) > 1 else 0
