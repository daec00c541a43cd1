"""Levels of sound: against libavfilter's own EBU R 128 meter, in time, and where there is none."""

from __future__ import annotations

import logging
import re

import av
import numpy as np
import pytest

from recaption.decoding.audio.levels import k_weighting
from recaption.errors import VideoError
from recaption.quality.loudness import integrated_loudness, sound_scores
from recaption.video_io import process
from recaption.video_io.opened_video import open_video
from recaption.video_io.reader import probe
from tests.recaption.decoding.audio.test_cut import packets_of, with_damage
from tests.stand_ins.sound_files import chirp, write_sounding_video


class NoSink:
    """A scan whose frames are not wanted."""

    def begin(self, sizes, pts_seconds, seconds):
        pass

    def add(self, stream, numbers, pixels_THWC):
        pass


def scanned(path):
    with open_video(path) as opened:
        video, _ = opened.scan_into(NoSink())
        return video, opened.sound


def ebur128(path):
    """LUFS of the first audio stream, measured by libavfilter's `ebur128`."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        graph = av.filter.Graph()
        source, meter = graph.add_abuffer(template=stream), graph.add("ebur128", "metadata=1")
        source.link_to(meter)
        meter.link_to(graph.add("abuffersink"))
        graph.configure()
        loudness = None
        for frame in container.decode(stream):
            graph.push(frame)
            while True:
                try:
                    loudness = graph.pull().metadata.get("lavfi.r128.I", loudness)
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return float(loudness)


def noise(seconds, rate_hz):
    rng = np.random.default_rng(3)
    envelope = np.repeat(rng.uniform(0.01, 0.4, round(seconds * 4)), rate_hz // 4)
    return (rng.standard_normal(len(envelope)) * envelope / 2).astype(np.float32).clip(-1, 1)


@pytest.mark.parametrize(("rate_hz", "layout"), [(48_000, "stereo"), (44_100, "mono"), (48_000, "5.1")])
def test_loudness_is_that_of_the_ebu_r128_meter(tmp_path, rate_hz, layout):
    track = {"codec": "flac", "rate_hz": rate_hz, "layout": layout, "samples_N": noise(6.0, rate_hz)}
    path = write_sounding_video(tmp_path / "noise.mkv", [track], seconds=6.0)
    _, sound = scanned(path)
    loudness, silence = sound_scores(sound, 0.0, 6.0)
    assert loudness == pytest.approx(ebur128(path), abs=0.1)
    assert silence == pytest.approx(0.0, abs=0.02)


def test_the_filters_are_those_of_bs_1770_at_48_khz():
    shelf, high_pass = k_weighting(48_000)
    assert [shelf[n] for n in ("b0", "b1", "b2", "a1", "a2")] == pytest.approx(
        [1.53512485958697, -2.69169618940638, 1.19839281085285, -1.69065929318241, 0.73248077421585], abs=1e-9
    )
    assert [high_pass[n] for n in ("a1", "a2")] == pytest.approx([-1.99004745483398, 0.99007225036621], abs=1e-9)


def test_a_tone_of_997_hz_at_full_scale_has_minus_3_lufs():
    mean_square = np.full(300, 0.5 * 10 ** (0.691 / 10), np.float32)
    assert integrated_loudness(mean_square) == pytest.approx(-3.01, abs=0.01)


def test_quiet_blocks_do_not_count():
    loud, quiet = np.full(200, 0.1, np.float32), np.full(800, 1e-5, np.float32)
    assert integrated_loudness(np.concatenate([loud, quiet])) == pytest.approx(integrated_loudness(loud), abs=0.7)
    assert integrated_loudness(np.full(200, 1e-9, np.float32)) is None
    assert integrated_loudness(loud[:39]) is None


def test_silence_is_found_where_it_is(tmp_path):
    samples_N = chirp(6.0, 48_000)
    samples_N[2 * 48_000 : 4 * 48_000] = 0
    path = write_sounding_video(tmp_path / "a.mp4", [{"samples_N": samples_N}], seconds=6.0)
    _, sound = scanned(path)
    assert [sound_scores(sound, *span)[1] for span in ((0.0, 1.9), (2.1, 3.9), (1.0, 3.0))] == pytest.approx(
        [0.0, 1.0, 0.5], abs=0.04
    )
    assert sound_scores(sound, 2.1, 3.9)[0] is None


def test_a_late_start_and_an_early_end_are_silence(tmp_path):
    track = {"start_seconds": 2.0, "samples_N": chirp(2.0, 48_000)}
    _, sound = scanned(write_sounding_video(tmp_path / "a.mkv", [track], seconds=6.0))
    assert sound_scores(sound, 0.0, 6.0)[1] == pytest.approx(4 / 6, abs=0.02)


def test_a_video_without_audio_is_silent(tmp_path):
    video, sound = scanned(write_sounding_video(tmp_path / "a.mp4", [], seconds=2.0))
    assert (video.has_audio, video.num_audio_streams, video.audio_detail) == (False, 0, "")
    assert sound_scores(sound, 0.0, 2.0) == (None, 1.0)


def test_columns_of_the_best_stream(tmp_path):
    tracks = [{"layout": "mono"}, {"codec": "ac3", "layout": "5.1", "rate_hz": 44_100}]
    video, _ = scanned(write_sounding_video(tmp_path / "a.mkv", tracks, seconds=2.0))
    assert (video.has_audio, video.num_audio_streams) == (True, 2)
    best = (video.audio_codec, video.audio_channels, video.audio_rate_hz)
    assert best in (("aac", 1, 48_000), ("ac3", 6, 44_100))


def test_damage_is_said_and_does_not_count(tmp_path):
    path = write_sounding_video(tmp_path / "a.mp4", seconds=6.0)
    rate = len(packets_of(path)) / 6
    video, sound = scanned(with_damage(path, round(2 * rate), round(3 * rate)))
    assert (video.status, video.has_audio) == ("ok", True)
    assert re.match(r"\d+ damaged packets, the first at (1\.9|2\.0)", video.audio_detail)
    assert np.isnan(sound.between(2.2, 2.8)).any()
    assert sound_scores(sound, 3.5, 6.0)[0] == pytest.approx(sound_scores(scanned(path)[1], 3.5, 6.0)[0], abs=0.1)


def test_the_audio_is_decoded_once(tmp_path, monkeypatch):
    path = write_sounding_video(tmp_path / "a.mp4", seconds=2.0)
    requests = []
    real = process.exchange
    monkeypatch.setattr(
        process, "exchange", lambda request, *a, **k: requests.append(request) or real(request, *a, **k)
    )
    with open_video(path) as opened:
        first, _ = opened.scan_into(NoSink())
        sound = opened.sound
        again, _ = opened.scan_into(NoSink())
    assert [request["measures_audio"] for request in requests] == [True, False]
    assert first == again
    assert opened.sound is sound


def test_audio_that_ends_the_decoder_leaves_the_video(tmp_path, monkeypatch):
    path = write_sounding_video(tmp_path / "a.mp4", seconds=2.0)
    real = process.exchange

    def crashes(request, descriptor, *, receive, **settings):
        header = real(request, descriptor, receive=receive, **settings)
        if request["measures_audio"]:
            raise VideoError("unreadable", "decoder crashed with signal 11")
        return header

    monkeypatch.setattr(process, "exchange", crashes)
    video, sound = scanned(path)
    assert (video.status, video.has_audio, video.num_frames) == ("ok", False, 50)
    assert video.audio_detail == "unreadable: decoder crashed with signal 11"
    assert len(sound.energies_N2) == 0


def test_a_probe_does_not_ask_for_sound(tmp_path):
    assert probe(write_sounding_video(tmp_path / "a.mp4", seconds=1.0)).status == "ok"
    assert logging.getLogger("libav").level <= logging.CRITICAL
