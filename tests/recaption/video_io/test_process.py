"""The decoder child gets open files only; signals from outside to it. (Videos that crash or stall it: test_reader.py.)"""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from recaption.decoding.messages import ProbeRequest
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io import process as decoder_process
from recaption.video_io.client import DecodeResponse, file_in_memory
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.process import MAX_KILLS
from recaption.video_io.reader import probe


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "scene.mp4"
    render(1, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE).write(path)
    return str(path)


def test_the_child_reads_a_file_that_has_no_name_any_more(video, tmp_path):
    expected = probe(video)
    path = tmp_path / "copy.mp4"
    shutil.copy(video, path)
    with open(path, "rb") as file:
        path.unlink()
        assert file.read(4)
        response = DecodeResponse(file, DecodeLimits(), ProbeRequest())
        assert response.header["video"]["num_frames"] == expected.num_frames
        assert file.tell() == 4
        assert file.read() == Path(video).read_bytes()[4:], "the child has moved the position of this process's file"


def test_the_child_cannot_write_to_the_file_in_memory(video):
    payload = Path(video).read_bytes()
    with file_in_memory(payload) as file:
        assert DecodeResponse(file, DecodeLimits(), ProbeRequest()).header["kind"] == "done"
        with decoder_process._reopened(file.fileno()) as descriptor:
            assert os.pread(descriptor, len(payload), 0) == payload
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(descriptor, b"x", 0)


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
