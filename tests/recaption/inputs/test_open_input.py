"""An input is its bytes: other bytes under the same name, size and times are noticed; the same bytes elsewhere are not."""

from __future__ import annotations

import os
import shutil

import fsspec
import pytest

from recaption.errors import VideoError
from recaption.inputs import open_input as module
from recaption.inputs.open_input import InputState, local_state, open_input

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""FIPS 180-2, appendix B.1."""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"abc")
    return path


@pytest.fixture
def remote():
    fs = fsspec.filesystem("memory")
    fs.pipe("/open-input/a.mp4", b"abc")
    yield "memory://open-input/a.mp4"
    fs.rm("/open-input", recursive=True)


@pytest.fixture
def hashed(monkeypatch):
    """Counts how often bytes are hashed."""
    calls = []
    video_id_of = module.video_id_of
    monkeypatch.setattr(module, "video_id_of", lambda file: calls.append(file) or video_id_of(file))
    return calls


def state_of(uri) -> InputState:
    with open_input(uri) as opened:
        return opened.state()


def test_the_id_of_a_video_is_its_content_and_not_its_name(path, tmp_path, remote):
    shutil.copyfile(path, tmp_path / "b.webm")
    for uri in (path, tmp_path / "b.webm", f"file://{path}", remote):
        assert state_of(uri).video_id == SHA256_OF_ABC[:16]
        assert state_of(uri).num_bytes == 3


def test_unchanged_files_are_not_hashed_again_and_touched_ones_are(path, hashed):
    state = state_of(path)
    hashed.clear()
    with open_input(path, expected=state) as opened:
        assert opened.video_id() == state.video_id
        assert opened.file.read() == b"abc"
    assert not hashed
    os.utime(path, ns=(1, 1))
    with open_input(path, expected=state) as opened:
        assert opened.state().mtime_ns == 1
    assert hashed


def test_a_copy_of_the_bytes_is_the_same_input(path, tmp_path):
    state = state_of(path)
    shutil.copyfile(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    with open_input(path, expected=state) as opened:
        assert opened.file.read() == b"abc"


@pytest.mark.parametrize("how", ["write", "replace"])
def test_other_bytes_of_the_same_size_and_time_are_noticed(path, tmp_path, how):
    state, times = state_of(path), os.stat(path)
    target = path if how == "write" else tmp_path / "other"
    target.write_bytes(b"abd")
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    if how == "replace":
        os.replace(target, path)
    now = local_state(str(path))
    assert (now.num_bytes, now.mtime_ns) == (state.num_bytes, state.mtime_ns)
    with pytest.raises(VideoError) as raised, open_input(path, expected=state):
        pass
    assert (raised.value.reason, raised.value.uri) == ("source_changed", str(path))
    with pytest.raises(VideoError, match="source_changed"), open_input(path, expected=state.video_id):
        pass


def test_a_file_that_is_written_to_while_it_is_read_is_not_used(path, tmp_path):
    with open_input(path) as opened:
        opened.check_unchanged()
        os.link(path, tmp_path / "another name")  # a new ctime, the same bytes
        opened.check_unchanged()
        path.write_bytes(b"abcd")
        with pytest.raises(VideoError, match="written to while it was read"):
            opened.check_unchanged()


def test_a_file_that_is_exchanged_while_it_is_open_stays_the_one_that_was_opened(path, tmp_path):
    (tmp_path / "other").write_bytes(b"xyz")
    with open_input(path, expected=SHA256_OF_ABC[:16]) as opened:
        os.replace(tmp_path / "other", path)
        opened.check_unchanged()
        assert opened.file.read() == b"abc"


def test_a_remote_file_is_compared_too_and_leaves_nothing_behind(remote):
    state = state_of(remote)
    assert (state.inode, state.mtime_ns) == (0, 0)
    assert state.etag
    with open_input(remote, expected=state) as opened:
        name = os.readlink(f"/proc/self/fd/{opened.file.fileno()}")
    assert name.endswith("(deleted)")
    fsspec.filesystem("memory").pipe("/open-input/a.mp4", b"abd")
    with pytest.raises(VideoError, match="source_changed"), open_input(remote, expected=state):
        pass


def test_missing_files_are_unreadable_and_named(tmp_path, remote):
    for uri, detail in ((str(tmp_path / "gone.mp4"), "No such file"), (remote + "x", "cannot be downloaded")):
        with pytest.raises(VideoError, match=detail) as raised, open_input(uri):
            pass
        assert (raised.value.reason, raised.value.uri) == ("unreadable", uri)


def test_folders_and_pipes_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    for path in (tmp_path, tmp_path / "pipe.mp4", "/dev/zero"):
        with pytest.raises(VideoError, match="not a regular file"), open_input(path):
            pass


def test_a_name_that_no_file_can_have_is_unreadable():
    with pytest.raises(VideoError) as raised, open_input("a\0b.mp4"):
        pass
    assert raised.value.reason == "unreadable"


def test_errors_of_a_network_file_system_are_no_verdict(path, monkeypatch):
    def stale(*_, **__):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(module.os, "stat", stale)
    with pytest.raises(VideoError) as raised, open_input(path):
        pass
    assert raised.value.reason == "fetch_failed"
