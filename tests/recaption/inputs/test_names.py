"""Every file name has a URI that a table can hold, and that leads back to the very file."""

import os

import pyarrow as pa
import pytest

from recaption.errors import UsageError
from recaption.inputs.names import check_protocol, local_path, protocol_of, remote_filesystem, uri_of_path

NAMES = [
    *(
        b"a::b.mp4",
        b"http:__x.mp4",
        b"file::http:x.mp4",
        b"-dash.mp4",
        b"~home.mp4",
        b"100% real #1.mp4",
        b"percent%00.mp4",
    ),
    *(
        b"caf\xe9.mp4",
        b"\xc4\xe3\xba\xc3.mp4",
        b"%C4\xff.mp4",
        "日本語 😀\u2028.mp4".encode(),
        b"new\nline\r.mp4",
        b"q?*[1].mp4",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_uri_of_any_name_leads_back_to_the_file(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write(b"x")
    uri = uri_of_path(os.fsdecode(path))
    assert pa.array([uri]).to_pylist() == [uri]
    assert os.fsencode(local_path(uri)) == path
    assert uri == path.decode() if name.isascii() else os.path.exists(local_path(uri))


def test_only_protocols_at_the_start_count_and_chains_are_no_uris():
    assert [
        protocol_of(name) for name in ("S3://b/a", "/d/s3://b", "a::b.mp4", "simplecache::s3://b/a", "http:/x")
    ] == [*("s3", "", "", "", "")]
    assert local_path("s3://bucket/a.mp4") is None
    assert local_path("file://localhost/a%20b.mp4") == local_path("file:///a%20b.mp4") == "/a b.mp4"
    fs, path = remote_filesystem("memory://lists/a::b://c.mp4")
    fs.pipe_file(path, b"x")
    assert path.lstrip("/") == "lists/a::b://c.mp4"
    assert fs.cat_file(path) == b"x"


@pytest.mark.parametrize(
    "uri", ["sftp://host/a.mp4", "local:///etc/passwd", "reference://a.mp4", "zip://a.mp4", "data://x"]
)
def test_inputs_are_read_from_an_allow_list_of_protocols(uri):
    with pytest.raises(UsageError, match="inputs are not read from"):
        check_protocol(uri)
    with pytest.raises(UsageError):
        remote_filesystem(uri)
