"""One opening for all clips of a video: the bytes are compared once, downloaded once, and stay the same while it is open."""

import os
import shutil

import fsspec
import numpy as np
import pytest

from recaption.errors import VideoError
from recaption.inputs.open_input import InputState
from recaption.video_io import open_video, opened_video, probe, read_clip, read_frames, scan
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.opened_video import OpenVideos
from recaption.video_io.writer import write_video

SPAN = {"num_frames": 4, "fps": 8, "height_px": 32, "width_px": 32}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two grey videos of 16 frames that get brighter."""
    folder = tmp_path_factory.mktemp("videos")
    for name, first in (("a.mp4", 20), ("b.mp4", 120)):
        levels = np.arange(16, dtype=np.uint8) * 6 + first
        write_video(folder / name, np.broadcast_to(levels[:, None, None, None], (16, 32, 32, 3)), fps=8)
    return folder


@pytest.fixture
def path(files, tmp_path):
    return str(shutil.copy(files / "a.mp4", tmp_path / "a.mp4"))


@pytest.fixture
def remote(files, monkeypatch):
    """A video on an object store, and what was downloaded."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/opened/a.mp4", (files / "a.mp4").read_bytes())
    downloads, get_file = [], type(fs).get_file
    monkeypatch.setattr(type(fs), "get_file", lambda *a, **k: downloads.append(a[1]) or get_file(*a, **k))
    yield "memory://opened/a.mp4", downloads
    fs.rm("/opened", recursive=True)


def clip_of(video, number):
    return video.read_clip(number / 2, start_frame=number * 4, end_frame=number * 4 + 4, **SPAN)


def test_an_open_video_reads_what_single_calls_read(path):
    with open_video(path, expected=probe(path).video_id) as video:
        assert video.probe() == probe(path)
        assert np.array_equal(video.scan().small.pixels_THWC, scan(path).small.pixels_THWC)
        assert np.array_equal(video.read_frames([3, 1]).pixels_THWC, read_frames(path, [3, 1]).pixels_THWC)
        single = read_clip(path, 0.5, start_frame=4, end_frame=8, **SPAN)
        assert np.array_equal(clip_of(video, 1), single)


def test_all_clips_of_a_remote_video_cost_one_download(remote):
    uri, downloads = remote
    state = InputState.of(probe(uri))
    with open_video(uri, expected=state) as video:
        for number in range(4):
            clip_of(video, number)
    assert len(downloads) == 2
    with OpenVideos(DecodeLimits()) as videos:
        for number in range(4):
            clip_of(videos.open(uri, state), number)
    assert len(downloads) == 3


def test_prepare_records_what_identifies_the_bytes(path):
    video, status = probe(path), os.stat(path)
    assert (video.num_bytes, video.mtime_ns, video.ctime_ns, video.inode) == (
        *(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino),
    )
    missing = probe(path + "x")
    assert (missing.reason, missing.inode) == ("unreadable", 0)


def test_a_video_that_was_replaced_while_it_is_open_stays_the_one_that_was_opened(path, files):
    state = InputState.of(probe(path))
    with OpenVideos(DecodeLimits()) as videos:
        before = clip_of(videos.open(path, state), 0)
        shutil.copy(files / "b.mp4", path + ".new")
        os.replace(path + ".new", path)
        assert np.array_equal(clip_of(videos.open(path, state), 0), before)
    with OpenVideos(DecodeLimits()) as videos, pytest.raises(VideoError, match="source_changed"):
        videos.open(path, state)


def test_a_video_that_is_written_to_while_it_is_open_is_not_used(path, files):
    state = InputState.of(probe(path))
    with OpenVideos(DecodeLimits()) as videos:
        clip_of(videos.open(path, state), 0)
        shutil.copyfile(files / "b.mp4", path)
        with pytest.raises(VideoError) as raised:
            clip_of(videos.open(path, state), 1)
    assert raised.value.reason == "source_changed"


def test_a_file_that_is_written_to_during_its_scan_is_a_failed_video(path, files, monkeypatch):
    class Writing(opened_video.DecodeResponse):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            shutil.copyfile(files / "b.mp4", path)

    monkeypatch.setattr(opened_video, "DecodeResponse", Writing)
    video = probe(path)
    assert (video.status, video.reason, video.video_id) == ("failed", "source_changed", "")


def test_the_last_few_videos_stay_open_and_failures_are_remembered(files, tmp_path, monkeypatch):
    monkeypatch.setattr(opened_video, "MAX_OPEN_VIDEOS", 2)
    calls = []
    open_one = opened_video.open_video
    monkeypatch.setattr(opened_video, "open_video", lambda uri, **k: calls.append(uri) or open_one(uri, **k))
    paths = [str(shutil.copy(files / "a.mp4", tmp_path / f"{number}.mp4")) for number in range(3)]
    with OpenVideos(DecodeLimits()) as videos:
        opened = [videos.open(path, None) for path in (paths[0], paths[1], paths[0], paths[2])]
        assert calls == paths
        assert [one.input.file.closed for one in opened] == [False, True, False, False]
        for _ in range(2):
            with pytest.raises(VideoError, match="No such file"):
                videos.open("/nowhere/a.mp4", None)
        assert calls.count("/nowhere/a.mp4") == 1
        videos.forget_failures()
        with pytest.raises(VideoError, match="No such file"):
            videos.open("/nowhere/a.mp4", None)
        assert calls.count("/nowhere/a.mp4") == 2
    assert all(one.input.file.closed for one in opened)
