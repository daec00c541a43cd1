"""An input is a local path while it is read: its own, or a download that is removed; anything else is an error."""

from __future__ import annotations

import os

import fsspec
import pytest

from recaption.errors import VideoError
from recaption.inputs.local_files import file_id, local_copy

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""FIPS 180-2, appendix B.1."""


@pytest.fixture
def remote():
    fs = fsspec.filesystem("memory")
    fs.pipe("/local-files/a.mp4", b"abc")
    yield "memory://local-files/a.mp4"
    fs.rm("/local-files", recursive=True)


def test_a_local_file_is_read_in_place(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"abc")
    for uri in (str(path), path, f"file://{path}"):
        with local_copy(uri) as local:
            assert local == str(path)
    assert path.exists()


def test_a_remote_file_is_downloaded_and_removed(remote):
    with local_copy(remote) as local, open(local, "rb") as file:
        assert file.read() == b"abc"
    assert not os.path.exists(os.path.dirname(local))


def test_a_download_is_removed_also_where_reading_it_fails(remote):
    with pytest.raises(ZeroDivisionError), local_copy(remote) as local:
        raise ZeroDivisionError
    assert not os.path.exists(local)


def test_missing_files_are_unreadable_and_named(tmp_path, remote):
    for uri, detail in ((str(tmp_path / "gone.mp4"), "No such file"), (remote + "x", "cannot be downloaded")):
        with pytest.raises(VideoError, match=detail) as raised, local_copy(uri):
            pass
        assert (raised.value.reason, raised.value.uri) == ("unreadable", uri)


def test_folders_and_pipes_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    for path in (tmp_path, tmp_path / "pipe.mp4"):
        with pytest.raises(VideoError, match="not a regular file"), local_copy(path):
            pass


def test_a_name_that_no_file_can_have_is_unreadable():
    with pytest.raises(VideoError) as raised, local_copy("a\0b.mp4"):
        pass
    assert raised.value.reason == "unreadable"


def test_the_id_of_a_video_is_its_content_and_not_its_name(tmp_path):
    for name in ("a.mp4", "b.webm"):
        (tmp_path / name).write_bytes(b"abc")
        assert file_id(tmp_path / name) == (SHA256_OF_ABC[:16], 3)
    (tmp_path / "a.mp4").write_bytes(b"abd")
    assert file_id(tmp_path / "a.mp4") != file_id(tmp_path / "b.webm")
