"""Signals from outside to the decoder child. (Videos that crash or stall it: test_reader.py.)"""

import os
import signal
import threading

import pytest

from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io import process as decoder_process
from recaption.video_io.process import MAX_KILLS
from recaption.video_io.reader import probe


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "scene.mp4"
    render(1, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE).write(path)
    return str(path)


def test_a_decoder_killed_from_outside_does_not_fail_the_video(video):
    expected = probe(video)
    stopped = decoder_process.child_pid()
    os.kill(stopped, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (stopped, signal.SIGKILL)).start()
    assert probe(video) == expected
    assert decoder_process.child_pid() != stopped


def test_a_video_whose_decoder_is_always_killed_is_a_failed_video(video, monkeypatch):
    seen = []

    def killed_at_once(self):
        seen.append(self)
        raise decoder_process._KilledError("decode_memory", decoder_process.KILLED)

    monkeypatch.setattr(decoder_process._Decoder, "running_child", killed_at_once)
    probed = probe(video)
    assert (probed.status, probed.reason) == ("failed", "decode_memory")
    assert "killed 4 times" in probed.detail
    assert len(seen) == MAX_KILLS
