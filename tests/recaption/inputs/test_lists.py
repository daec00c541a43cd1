"""Lists as Windows, ffmpeg, spreadsheets and strangers write them: every entry is an input or a refused one."""

import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recaption.errors import UsageError
from recaption.inputs.paths import expand_paths, find_inputs


@pytest.fixture
def folder(tmp_path):
    for name in (
        "a.mp4",
        "b.mp4",
        "c, d.mp4",
        "#hash.mp4",
        " lead and trail .mp4",
        "a::b.mp4",
        "it's.mp4",
        "sub/x.mp4",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def listed(folder, data: bytes, name: str = "list.txt"):
    (folder / name).write_bytes(data)
    return [one.removeprefix(f"{folder}/") for one in expand_paths([str(folder / name)])]


@pytest.mark.parametrize("name", ["list.txt", "LIST.TXT"])
@pytest.mark.parametrize(
    "data",
    [
        b"a.mp4\r\nb.mp4\r\n\r\n",
        b"\xef\xbb\xbfa.mp4\nb.mp4\n",
        "a.mp4\nb.mp4\n".encode("utf-16"),
        "a.mp4\nb.mp4\n".encode("utf-16-le"),
        b"file 'a.mp4'\nfile 'b.mp4'\n",
        b"ffconcat version 1.0\nfile a.mp4\nduration 2.5\nfile b.mp4\n",
        b"\"a.mp4\"\n'b.mp4'\n",
        b"# a comment\n  a.mp4  \n\tb.mp4\n",
        b"./a.mp4\nsub/../b.mp4\n",
    ],
)
def test_lists_of_all_systems_give_their_entries(folder, data, name):
    assert listed(folder, data, name) == ["a.mp4", "b.mp4"]


def test_a_line_that_names_a_file_is_that_file(folder):
    data = b'#hash.mp4\n# hash.mp4\n lead and trail .mp4\na::b.mp4\nit\'s.mp4\nc, d.mp4\nsub\\x.mp4\nmissing.mp4\n"no.mp4"\n'
    assert listed(folder, data) == [
        *(" lead and trail .mp4", "#hash.mp4", "a::b.mp4", "c, d.mp4", "it's.mp4", "missing.mp4", "no.mp4", "sub/x.mp4")
    ]


def test_names_in_other_encodings_are_the_files_of_these_bytes_or_of_this_text(folder):
    latin1 = os.path.join(os.fsencode(folder), b"caf\xe9.mp4")
    with open(latin1, "wb"):
        pass
    assert listed(folder, b"caf\xe9.mp4\na.mp4\n") == ["a.mp4", f"file://{folder}/caf%E9.mp4"]
    os.remove(latin1)
    assert listed(folder, b"caf\xe9.mp4\na.mp4\n") == ["a.mp4", "café.mp4"]


def test_line_ends_inside_of_names_are_those_of_text_files_only(folder):
    (folder / "u\u2028v.mp4").write_bytes(b"x")
    assert listed(folder, "u\u2028v.mp4\n".encode()) == ["u\u2028v.mp4"]


def test_what_is_no_list_is_one_sentence(folder):
    (folder / "list.xlsx").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"lists are read from .*\.csv.* files, not from \.xlsx files"):
        expand_paths([str(folder / "list.xlsx")])
    for name, data in (
        ("list.txt", os.urandom(3000)),
        ("list.parquet", b"PAR1 not parquet"),
        ("list.csv", os.urandom(3000)),
    ):
        (folder / name).write_bytes(data)
        with pytest.raises(UsageError, match=name):
            expand_paths([str(folder / name)])


def test_empty_entries_of_a_table_are_refused_and_named(folder):
    pq.write_table(pa.table({"path": ["a.mp4", None, " "]}), folder / "list.parquet")
    assert listed_in(folder / "list.parquet") == {
        f"{folder}/a.mp4": "",
        **{f"{folder}/list.parquet#row={n}": f"row {n} of the list has no path" for n in (1, 2)},
    }
    column = pa.array([{"bytes": None, "path": "b.mp4"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"video": column}), folder / "PATHS.PARQUET")
    assert expand_paths([str(folder / "PATHS.PARQUET")]) == [f"{folder}/b.mp4"]


def listed_in(path):
    """Uri -> why it is refused, of all entries of a list."""
    with find_inputs([str(path)]) as found:
        return {uri: refusal for uri, refusal, _ in found.listed.videos()}


def test_entries_have_an_allow_list_of_protocols(folder):
    lines = [
        "s3://b/a.mp4",
        "https://h/a.mp4",
        "sftp://h/a.mp4",
        "local:///etc/passwd",
        "filecache::file:///etc/passwd",
    ]
    lines += [f"file://{folder}/a.mp4", "reference://a.mp4::http://h/refs.json", "http://127.0.0.1/own.mp4"]
    (folder / "list.txt").write_text("\n".join(lines))
    found = listed_in(folder / "list.txt")
    refused = {uri: why for uri, why in found.items() if why}
    assert refused.keys() == {"sftp://h/a.mp4", "local:///etc/passwd", "reference://a.mp4::http://h/refs.json"}
    assert all("inputs are not read from" in why for why in refused.values())
    assert found.keys() - refused.keys() == {
        *("s3://b/a.mp4", "https://h/a.mp4", f"{folder}/a.mp4", "http://127.0.0.1/own.mp4"),
        f"{folder}/filecache::file:/etc/passwd",  # a name in the folder, which does not exist
    }


def test_a_remote_list_keeps_its_protocol_and_does_not_name_this_machine():
    lines = [
        "a.mp4",
        "sub/../b c.mp4",
        "s3://x/y.mp4",
        "/data/c.mp4",
        "http://127.0.0.1/d.mp4",
        "http://169.254.169.254/e",
    ]
    fsspec.filesystem("memory").pipe("/lists/list.txt", "\n".join(lines).encode())
    found = listed_in("memory://lists/list.txt")
    refused = {uri for uri, why in found.items() if why}
    assert refused == {"http://127.0.0.1/d.mp4", "http://169.254.169.254/e"}
    assert found.keys() - refused == {
        *("memory:///lists/a.mp4", "memory:///lists/b c.mp4", "s3://x/y.mp4", "/data/c.mp4"),
    }
