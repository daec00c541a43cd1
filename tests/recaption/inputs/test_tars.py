"""Tars of video2dataset, webdataset and our own as inputs: members by their places, never unpacked."""

import io
import json
import tarfile

import fsspec
import pytest

from recaption.errors import UsageError, VideoError
from recaption.inputs import tars
from recaption.inputs.open_input import open_input
from recaption.inputs.paths import expand_paths, find_inputs
from recaption.inputs.sidecars import find_sidecar


def tar_of(members, mode="w"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


METADATA = {
    "url": "https://y/w?v=1",
    "caption": "of json",
    "license": "CC BY",
    "views": 3,
    "clips": [[1.0, 2.0]],
    "key": "1",
}
MEMBERS = {
    "0001.mp4": b"first" * 9999,
    "0001.txt": "a dóg".encode(),
    "0001.json": json.dumps(METADATA).encode(),
    "0001.jpg": b"\xff\xd8",
    "sub/0002.webm": b"second",
    "sub/0002.json": b"{broken",
    "0003.m4a": b"sound",
    "weird #1 caf\xe9.mp4": b"third",
}


def spans_in(path):
    with find_inputs([str(path)]) as found:
        return [(uri, *spans) for uri, _, spans in found.listed.videos()]


def test_videos_of_a_tar_come_with_what_is_beside_them(tmp_path):
    path = tmp_path / "00000.tar"
    path.write_bytes(tar_of(MEMBERS))
    uris = [f"tar+file://{path}#{name}" for name in ("0001.mp4", "sub/0002.webm", "weird%20%231%20caf%C3%A9.mp4")]
    found = spans_in(path)
    assert [uri for uri, *_ in found] == uris
    (span,) = found[0][1:]
    assert (span.texts, span.source, span.licence, span.id) == (("a dóg", "of json"), "https://y/w?v=1", "CC BY", "1")
    assert (span.unit, json.loads(span.metadata)["views"]) == ("", 3)
    for uri, name in zip(uris, ("0001.mp4", "sub/0002.webm", "weird #1 café.mp4"), strict=True):
        with open_input(uri) as opened:
            assert opened.file.read() == MEMBERS.get(name, b"third")
    assert find_sidecar(uris[0]).text == ""


def test_tars_of_folders_are_read_and_those_without_videos_accompany(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of({"x.mp4": b"x"}))
    (tmp_path / "latents.tar").write_bytes(tar_of({"x.npy": b"x", "x.json": b"{}"}))
    (tmp_path / "packed.tar").write_bytes(tar_of({"x.mp4": b"x"}, "w:gz"))
    (tmp_path / "plain.mp4").write_bytes(b"y")
    with find_inputs([str(tmp_path)]) as found:
        assert found.all_names() == [
            f"{tmp_path}/packed.tar",
            f"{tmp_path}/plain.mp4",
            f"tar+file://{tmp_path}/a.tar#x.mp4",
        ]
        assert "unpacked" in found.refused[f"{tmp_path}/packed.tar"]
        assert found.companions == {f"{tmp_path}/latents.tar"}
    for name in ("packed.tar", "latents.tar"):
        with pytest.raises(UsageError, match=name):
            expand_paths([str(tmp_path / name)])


def test_a_member_is_its_bytes_wherever_they_stand(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({"x.mp4": b"x" * 700, "y.mp4": b"y"}))
    uri = f"tar+file://{path}#y.mp4"
    with open_input(uri) as opened:
        state = opened.state()
    assert (state.num_bytes, bool(state.etag)) == (1, True)
    path.write_bytes(tar_of({"y.mp4": b"y"}))
    with open_input(uri, expected=state) as opened:
        assert opened.file.read() == b"y"
    path.write_bytes(tar_of({"y.mp4": b"z"}))
    with pytest.raises(VideoError, match="source_changed"), open_input(uri, expected=state):
        pass
    with pytest.raises(VideoError, match="no member"), open_input(f"tar+file://{path}#gone.mp4"):
        pass
    with pytest.raises(VideoError, match="unreadable"), open_input(f"tar+file://{tmp_path}/gone.tar#y.mp4"):
        pass
    path.write_bytes(tar_of({"y.mp4": b"y" * 5000})[:3000])
    with pytest.raises(VideoError, match="unreadable"), open_input(uri):
        pass


def test_remote_tars_are_read_in_ranges(tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/tars/b.tar", tar_of(MEMBERS))
    uris = expand_paths(["memory://tars/"])
    assert uris[0] == "tar+memory:///tars/b.tar#0001.mp4"
    monkeypatch.setattr(tars, "COPY_BYTES", 1000)
    with open_input(uris[0]) as opened:
        assert opened.file.read() == MEMBERS["0001.mp4"]
