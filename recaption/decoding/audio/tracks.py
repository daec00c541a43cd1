"""Audio tracks that are ready to be written: packets of one stream in a span, and how they get into an mp4.

    track = AudioTrack(codec="aac", rate_hz=48000, layout="stereo", packets=(Packet(-1372, 1024, b"..."), ...))
    header, payload = to_message([track])               # from the child
    (track,) = from_message(header, payload)            # in the parent, which looks into no packet
    with av.open(..., "w", format="mp4") as output: muxer = TrackMuxer(output, [track])

Times are samples from the start of the clip: what lies before 0 is there for the decoder, and hidden by the mp4's edit list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from recaption.errors import VideoError

MUXED_BY = {"aac": "aac", "mp3": "libmp3lame", "opus": "libopus"}
"""Codecs of tracks -> the encoder that describes them to the muxer. All three play in browsers and in trainers' loaders."""
LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1")
"""Channel layouts of tracks, by FFmpeg's names: those that AAC has a number for."""


class Packet(NamedTuple):
    """One packet of a track."""

    time: int
    """Samples from the start of the clip to its first."""
    duration: int
    """Samples."""
    payload: bytes


@dataclass(frozen=True)
class AudioTrack:
    """The audio of one stream in a span."""

    codec: str
    """A key of `MUXED_BY`."""
    rate_hz: int
    layout: str
    """One of `LAYOUTS`."""
    packets: tuple[Packet, ...]
    source_codec: str = ""
    """Of the stream that it was encoded from; "" where its packets are copied."""
    language: str = ""
    """Three letters (ISO 639-2), or none."""

    def ending_at(self, seconds: float) -> AudioTrack:
        """A copy whose last packet is shown only up to this time of the clip."""
        end = round(seconds * self.rate_hz)
        packets = [packet for packet in self.packets if packet.time < end]
        if packets:
            packets[-1] = packets[-1]._replace(duration=min(packets[-1].duration, end - packets[-1].time))
        return replace(self, packets=tuple(packets))

    @property
    def description(self) -> str:
        """`aac` where it was copied, else `aac from ac3`."""
        return f"{self.codec} from {self.source_codec}" if self.source_codec else self.codec


@dataclass(frozen=True)
class ClipAudio:
    """All audio of a span."""

    tracks: tuple[AudioTrack, ...] = ()
    lost: tuple[str, ...] = ()
    """Streams that are left out, and why: they are damaged, or too many."""

    @property
    def description(self) -> str:
        """One line for a column: `aac, aac from ac3`."""
        return ", ".join(track.description for track in self.tracks)


NO_AUDIO = ClipAudio()


def to_message(audio: ClipAudio) -> tuple[dict[str, Any], bytes]:
    """(JSON header, payload) of a message."""
    tracks = [
        {
            "codec": track.codec,
            "rate_hz": track.rate_hz,
            "layout": track.layout,
            "source_codec": track.source_codec,
            "language": track.language,
            "packets": [[packet.time, packet.duration, len(packet.payload)] for packet in track.packets],
        }
        for track in audio.tracks
    ]
    payload = b"".join(packet.payload for track in audio.tracks for packet in track.packets)
    return {"tracks": tracks, "lost": list(audio.lost)}, payload


def from_message(header: dict[str, Any], payload: bytes) -> ClipAudio:
    """The inverse of `to_message`. Of the packets only the first two bytes are looked at.

    Raises:
        VideoError: unreadable, the message is none that the child writes.
    """
    tracks, position = [], 0
    for fields in header["tracks"]:
        codec, layout, rate_hz = fields["codec"], fields["layout"], int(fields["rate_hz"])
        if codec not in MUXED_BY or layout not in LAYOUTS or not 1000 <= rate_hz <= 192_000:
            raise VideoError(
                "unreadable", f"the decoder sent an audio track that cannot be: {codec}, {layout}, {rate_hz}"
            )
        packets = []
        for time, duration, num_bytes in fields["packets"]:
            packet = payload[position : position + num_bytes]
            if (
                codec == "aac" and packet[:1] == b"\xff" and packet[1:2] >= b"\xf0"
            ):  # libavformat would parse its header
                raise VideoError("unreadable", "the decoder sent AAC with ADTS headers, which no mp4 holds")
            packets.append(Packet(int(time), int(duration), packet))
            position += num_bytes
        language = fields["language"] if re.fullmatch("[a-z]{3}", fields["language"]) else ""
        tracks.append(AudioTrack(codec, rate_hz, layout, tuple(packets), str(fields["source_codec"]), language))
    if position != len(payload):
        raise VideoError("unreadable", f"the decoder sent {len(payload)} bytes of audio, and described {position}")
    return ClipAudio(tuple(tracks), tuple(map(str, header["lost"])))


class TrackMuxer:
    """Writes tracks into an open mp4 beside the packets of its video, in the order of their times.

    Args:
        output: before its first packet; its video stream is the first.
    """

    def __init__(self, output: Any, tracks: Sequence[AudioTrack]) -> None:
        import av  # whoever only passes tracks on needs no libav

        self.new_packet, self.output = av.Packet, output
        waiting = []
        for track in tracks:
            stream = output.add_stream(MUXED_BY[track.codec], rate=track.rate_hz, layout=track.layout)
            stream.codec_context.options = {"flags": "+bitexact"}
            if track.language:
                stream.metadata["language"] = track.language
            waiting += [(Fraction(p.time, track.rate_hz), number, stream, p) for number, p in enumerate(track.packets)]
        self.waiting = sorted(waiting, key=lambda entry: (entry[0], entry[2].index, entry[1]), reverse=True)

    def mux_before(self, seconds: Fraction | None) -> None:
        """Write the packets that start before this time; None: all that are left."""
        while self.waiting and (seconds is None or self.waiting[-1][0] < seconds):
            _, _, stream, source = self.waiting.pop()
            packet = self.new_packet(source.payload)
            packet.stream, packet.time_base = stream, Fraction(1, stream.codec_context.sample_rate)
            packet.pts = packet.dts = source.time
            packet.duration, packet.is_keyframe = source.duration, True
            self.output.mux(packet)
