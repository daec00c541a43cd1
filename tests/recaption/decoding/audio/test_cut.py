"""Cuts of audio that is not simple: several streams, gaps, late starts, early ends, damage, too many channels."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from recaption.decoding.audio.codecs import num_opus_samples, parse_aac_config, without_adts
from recaption.decoding.audio.encode import track_layout
from recaption.decoding.audio.streams import Timeline
from recaption.decoding.audio.tracks import AudioTrack, ClipAudio, Packet, from_message, to_message
from recaption.errors import VideoError
from recaption.video_io import process
from recaption.video_io.opened_video import open_video
from recaption.video_io.reader import decode_bytes, read_frames
from recaption.video_io.writer import encode_video
from tests.stand_ins.sound_files import chirp, chirp_time, decoded_sound, write_sounding_video

SECONDS = 6.0


def clip_of(path, start, end):
    with open_video(path) as opened:
        audio = opened.read_audio(start, end)
    return encode_video(np.zeros((8, 16, 16, 3), np.uint8), fps=8 / (end - start), audio=audio.tracks), audio


def packets_of(path, stream=0):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[stream]) if packet.size]


def with_damage(path, first, last):
    """A copy of a video in which some audio packets, by number, are noise."""
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for packet in packets_of(path)[first:last]:
        position = content.index(packet)
        content[position : position + len(packet)] = rng.integers(0, 256, len(packet), np.uint8).tobytes()
    damaged = path.with_name(f"damaged-{path.name}")
    damaged.write_bytes(content)
    return damaged


def test_all_streams_are_kept_each_with_its_language_and_in_sync(tmp_path):
    tracks = [
        {"language": "eng"},
        {"codec": "ac3", "layout": "5.1", "language": "fra"},
        {"codec": "libopus", "layout": "mono"},
    ]
    path = write_sounding_video(tmp_path / "dubbed.mkv", tracks, seconds=SECONDS)
    mp4, audio = clip_of(path, 2.5, 4.5)
    assert audio.description == "aac, aac from ac3, opus"
    assert [track.language for track in audio.tracks] == ["eng", "fra", ""]
    for number in range(3):
        start, samples_CN, rate_hz = decoded_sound(mp4, number)
        assert samples_CN.shape[0] == (2, 6, 1)[number]
        found = chirp_time(samples_CN[0, 12_000:60_000], rate_hz, SECONDS) - 0.25
        assert abs(found - start - 2.5 + 0.021) < 0.023  # Matroska starts with the delay of the AAC encoder


def test_a_gap_is_silence_and_what_follows_stays_in_sync(tmp_path):
    path = write_sounding_video(
        tmp_path / "gap.mkv", [{"codec": "pcm_s16le", "silent_spans": [(2.0, 3.0)]}], seconds=SECONDS
    )
    mp4, _ = clip_of(path, 1.0, 5.0)
    _, samples_CN, rate_hz = decoded_sound(mp4)
    assert np.abs(samples_CN[0, round(1.1 * rate_hz) : round(1.9 * rate_hz)]).max() < 0.01
    for offset in (0.0, 2.2, 3.4):
        part_N = samples_CN[0, round(offset * rate_hz) :][: rate_hz // 2]
        assert abs(chirp_time(part_N, rate_hz, SECONDS) - 1.0 - offset) < 0.002


def test_packets_with_a_gap_are_not_copied(tmp_path):
    path = write_sounding_video(tmp_path / "gap.mp4", [{"silent_spans": [(2.0, 3.0)]}], seconds=SECONDS)
    assert clip_of(path, 0.5, 1.5)[1].description == "aac"
    mp4, audio = clip_of(path, 1.0, 5.0)
    assert audio.description == "aac from aac"
    _, samples_CN, rate_hz = decoded_sound(mp4)
    assert abs(chirp_time(samples_CN[0, round(2.4 * rate_hz) : round(3.4 * rate_hz)], rate_hz, SECONDS) - 3.4) < 0.002


def test_a_stream_that_starts_late_begins_with_silence(tmp_path):
    path = write_sounding_video(tmp_path / "late.mp4", [{"start_seconds": 1.5}], seconds=SECONDS)
    mp4, audio = clip_of(path, 0.5, 4.5)
    start, samples_CN, rate_hz = decoded_sound(mp4)
    assert (audio.description, start) == ("aac from aac", 0.0)
    assert np.abs(samples_CN[0, : round(0.95 * rate_hz)]).max() < 0.01
    assert abs(chirp_time(samples_CN[0, round(1.5 * rate_hz) : round(2.5 * rate_hz)], rate_hz, SECONDS) - 2.0) < 0.002


def test_a_stream_that_ends_early_ends_early_and_has_nothing_behind(tmp_path):
    path = write_sounding_video(tmp_path / "short.mp4", [{"samples_N": chirp(3.0, 48_000)}], seconds=SECONDS)
    _, samples_CN, rate_hz = decoded_sound(clip_of(path, 2.0, 5.0)[0])
    assert 1.0 <= samples_CN.shape[1] / rate_hz < 1.05
    assert clip_of(path, 4.0, 6.0)[1] == ClipAudio()


def test_sound_that_goes_on_behind_the_clip_is_cut_off(tmp_path):
    path = write_sounding_video(tmp_path / "long.mp4", seconds=SECONDS)
    with av.open(io.BytesIO(clip_of(path, 1.0, 3.0)[0])) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "ac3")])
def test_damage_costs_the_audio_of_its_clip_and_nothing_else(tmp_path, name, codec):
    path = write_sounding_video(tmp_path / name, [{"codec": codec}], seconds=SECONDS)
    rate = len(packets_of(path)) / SECONDS
    damaged = with_damage(path, round(4.0 * rate), round(4.3 * rate))
    good, lost = clip_of(damaged, 1.0, 3.0)[1], clip_of(damaged, 3.5, 5.5)[1]
    assert (len(good.tracks), good.lost) == (1, ())
    assert not lost.tracks
    assert lost.lost[0].startswith(f"stream 1 ({codec}): damaged at 4.")
    assert np.array_equal(read_frames(str(damaged), [100]).pixels_THWC, read_frames(str(path), [100]).pixels_THWC)


def test_one_damaged_stream_leaves_the_others(tmp_path):
    path = write_sounding_video(tmp_path / "two.mp4", [{}, {"codec": "libmp3lame"}], seconds=SECONDS)
    audio = clip_of(with_damage(path, 150, 160), 2.0, 5.0)[1]
    assert audio.description == "mp3"
    assert audio.lost[0].startswith("stream 1 (aac): damaged at 3.")


def test_a_video_without_audio_gives_the_bytes_that_it_gave_before(tmp_path):
    path = write_sounding_video(tmp_path / "silent.mp4", [], seconds=SECONDS)
    with open_video(path) as opened:
        assert opened.read_audio(0.0, 2.0) == ClipAudio()
        assert opened.cut(12, 24, audio_seconds=(0.48, 0.96)).mp4 == opened.cut(12, 24).mp4


def test_a_lossless_cut_has_the_audio_of_its_span(tmp_path):
    path = write_sounding_video(tmp_path / "a.mp4", seconds=SECONDS)
    with open_video(path) as opened:
        cut = opened.cut(48, 96, audio_seconds=(48 / 25, 96 / 25))
        assert opened.cut(48, 96, audio_seconds=(48 / 25, 96 / 25)) == cut
        assert (cut.obstacle, cut.audio, cut.lost) == ("", "aac", ())
        assert np.array_equal(decode_bytes(cut.mp4).pixels_THWC, opened.read_frames(range(48, 96)).pixels_THWC)
    start, samples_CN, rate_hz = decoded_sound(cut.mp4)
    assert abs(chirp_time(samples_CN[0, 6000:72_000], rate_hz, SECONDS) - 6000 / rate_hz - start - 48 / 25) < 1e-4
    assert cut.mp4.find(b"moov") < cut.mp4.find(b"mdat")


def test_audio_that_ends_the_decoder_costs_the_audio_only(tmp_path, monkeypatch):
    path = write_sounding_video(tmp_path / "a.mp4", seconds=SECONDS)
    real = process.exchange

    def crashes_on_audio(request, *arguments, **settings):
        if request["op"] == "audio" or request.get("audio_seconds"):
            raise VideoError("unreadable", "decoder crashed with signal 11")
        return real(request, *arguments, **settings)

    monkeypatch.setattr(process, "exchange", crashes_on_audio)
    with open_video(path) as opened:
        assert opened.read_audio(0.0, 2.0) == ClipAudio(lost=("unreadable: decoder crashed with signal 11",))
        cut = opened.cut(48, 96, audio_seconds=(48 / 25, 96 / 25))
    assert (cut.audio, cut.lost) == ("", ("unreadable: decoder crashed with signal 11",))
    assert len(decode_bytes(cut.mp4)) == 48


# --- what the parts do ----------------------------------------------------------------------------------------------------


def test_messages_carry_tracks_and_refuse_what_no_child_writes():
    track = AudioTrack("aac", 48_000, "stereo", (Packet(-1024, 1024, b"abc"), Packet(0, 1024, b"d")), "ac3", "deu")
    audio = ClipAudio((track,), ("stream 2 (aac): damaged",))
    header, payload = to_message(audio)
    assert from_message(header, payload) == audio
    with pytest.raises(VideoError, match="described 4"):
        from_message(header, payload + b"e")
    adts, adts_payload = to_message(ClipAudio((AudioTrack("aac", 48_000, "stereo", (Packet(0, 1024, b"\xff\xf1."),)),)))
    with pytest.raises(VideoError, match="ADTS"):
        from_message(adts, adts_payload)
    for name, value in (("codec", "h264"), ("layout", "7.1"), ("rate_hz", 10)):
        forged = {**header, "tracks": [header["tracks"][0] | {name: value}]}
        with pytest.raises(VideoError, match="cannot be"):
            from_message(forged, payload)


@pytest.mark.parametrize(
    ("config", "is_plain"),
    [
        (b"\x11\x90", True),
        (b"\x12\x10", True),
        (b"\x2b\x92\x08\x00", False),
        (b"\xf9\x48\x42", False),
        (b"\x11\x80", False),
    ],
    ids=["48 kHz stereo", "44.1 kHz stereo", "SBR", "USAC", "channels in the packets"],
)
def test_only_plain_aac_is_copied(config, is_plain):
    assert parse_aac_config(config).is_plain is is_plain


def test_adts_headers_are_taken_off():
    header = bytes.fromhex("fff14c8002bffc")  # AAC-LC, 48 kHz, stereo
    config, raw = without_adts(header + b"frame")
    assert (config.object_type, config.channels, raw) == (2, 2, b"frame")
    assert without_adts(b"\x21\x00frame...") is None


@pytest.mark.parametrize(
    ("packet", "samples"), [(b"\xfc", 960), (b"\x78\0", 960), (b"\xe1", 240), (b"\x03\x05", 2400), (b"", 0)]
)
def test_opus_packets_say_how_long_they_are(packet, samples):
    assert num_opus_samples(packet) == samples


def test_layouts_that_aac_has_no_number_for_become_those_it_has():
    assert track_layout("5.1(side)", 6) == "5.1"
    assert track_layout("7.1", 8) == "5.1"
    assert track_layout("quad", 4) == "stereo"
    assert track_layout("3.0", 3) == "3.0"


def test_frames_follow_each_other_through_jitter_and_jump_at_gaps_and_lasting_shifts():
    jittered, gap, shifted = Timeline(0.0, 48_000), Timeline(0.0, 48_000), Timeline(0.0, 48_000)
    frame = 1024 / 48_000
    assert [jittered.place(n * frame + (n % 2) * 0.004, 1024) for n in range(20)] == [n * 1024 for n in range(20)]
    assert [gap.place(t, 1024) for t in (0.0, frame, 1.0)] == [0, 1024, 48_000]
    positions = [shifted.place(n * frame + (0.006 if n else 0), 1024) for n in range(20)]
    assert positions[:8] == [n * 1024 for n in range(8)]
    assert positions[10:] == [n * 1024 + 288 for n in range(10, 20)]
