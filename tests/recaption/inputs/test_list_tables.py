"""Tables of public data sets, of pandas and of strangers: every row is spans of a video, or a sentence about the row."""

import csv
import gzip
import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recaption.errors import UsageError
from recaption.inputs.lists import json_rows, tables
from recaption.inputs.lists.columns import find_columns, parse_columns
from recaption.inputs.lists.entries import ListEntry
from recaption.inputs.lists.read_list import read_list
from recaption.inputs.lists.spans import parse_seconds


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos" / "page").mkdir(parents=True)
    for name in ("abc.mp4", "page/12.mp4", "v 1.mkv"):
        (tmp_path / "videos" / name).write_bytes(b"x")
    return tmp_path


def spans(folder, name, data, root="", columns=()):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    found = list(read_list(str(path), parse_columns(columns), root=str(folder / root) if root else ""))
    return [one for one in found if not isinstance(one, ListEntry)], [
        one for one in found if isinstance(one, ListEntry)
    ]


def csv_of(*rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


def told(span):
    return (span.start, span.end, span.unit, *span.texts)


# --- public data sets -------------------------------------------------------------------------------------------------


def test_a_row_of_panda_70m_is_as_many_spans(folder):
    times, texts = [["0:00:01.500", "0:00:03"], ["0:01:04", "0:01:05"]], ["a dog", 'it\'s a "cat"']
    row = ["abc", "https://www.youtube.com/watch?v=abc", str(times), str(texts), "[0.4, 0.5]"]
    data = csv_of(["videoID", "url", "timestamp", "caption", "matching_score"], row)
    found, _ = spans(folder, "panda.csv", data, root="videos")
    assert [told(one) for one in found] == [(1.5, 3.0, "seconds", texts[0]), (64.0, 65.0, "seconds", texts[1])]
    assert {one.uri for one in found} == {f"{folder}/videos/abc.mp4"}
    assert [json.loads(one.metadata) for one in found] == [{"matching_score": 0.4}, {"matching_score": 0.5}]
    assert {(one.id, one.source) for one in found} == {("abc", "https://www.youtube.com/watch?v=abc")}
    elsewhere, _ = spans(folder, "panda.csv", data)
    assert {one.uri for one in elsewhere} == {"https://www.youtube.com/watch?v=abc"}


def test_names_of_other_data_sets_are_known(folder):
    webvid = csv_of(
        ["videoid", "contentUrl", "duration", "page_dir", "name"], [12, "https://h/12.mp4", "PT10S", "page", "A man"]
    )
    (one,), _ = spans(folder, "webvid.csv", webvid, root="videos")
    assert (one.uri, one.texts, one.source) == (f"{folder}/videos/page/12.mp4", ("A man",), "https://h/12.mp4")
    (one,), _ = spans(folder, "webvid.csv", webvid)
    assert one.uri == "https://h/12.mp4"
    openvid = csv_of(
        ["video", "caption", "aesthetic score", "frame", "fps", "seconds"], ["abc.mp4", "A", 5.1, 57, 25, 2.3]
    )
    (one,), _ = spans(folder, "openvid.csv", openvid, root="videos")
    assert told(one) == (None, None, "", "A")
    assert json.loads(one.metadata) == {"aesthetic score": "5.1", "frame": "57", "fps": "25", "seconds": "2.3"}
    internvid = (
        '{"YoutubeID":"q","Start_timestamp":"00:00:01.5","End_timestamp":"00:00:03","Caption":"x","UMT_Score":0.4}'
    )
    (one,), _ = spans(folder, "internvid.jsonl", internvid)
    assert (one.uri, *told(one)) == ("https://www.youtube.com/watch?v=q", 1.5, 3.0, "seconds", "x")
    koala = csv_of(["videoID", "timestamp", "caption", "VTSS"], ["abc", "['0:00:01', '0:00:02.5']", "k", 3])
    (one,), _ = spans(folder, "koala.csv", koala, root="videos")
    assert told(one) == (1.0, 2.5, "seconds", "k")
    (one,), _ = spans(folder, "vidgen.json", '[{"vid": "abc", "caption": "v"}]', root="videos")
    assert (one.uri, one.texts) == (f"{folder}/videos/abc.mp4", ("v",))
    mira = csv_of(
        ["video_url", "clip_id", "timestamp", "dense_caption", "file_path"], ["u", 7, "[1, 2]", "d", "abc.mp4"]
    )
    (one,), _ = spans(folder, "mira.csv", mira, root="videos")
    assert (told(one), one.id) == ((1.0, 2.0, "seconds", "d"), "7")
    v2d = pd.DataFrame({"url": ["https://h/x.mp4"], "caption": ["c"], "clips": [[[1.0, 2.0], [3.0, 4.0]]]})
    v2d.to_parquet(folder / "v2d.parquet")
    assert [told(one) for one in read_list(str(folder / "v2d.parquet"), {})] == [
        (1.0, 2.0, "seconds", "c"),
        (3.0, 4.0, "seconds", "c"),
    ]
    open_sora = json.dumps([{"path": "abc.mp4", "cap": ["o"], "frame_idx": "10:139"}])
    (one,), _ = spans(folder, "plan.json", open_sora, root="videos")
    assert told(one) == (10, 139, "frames", "o")
    activity = json.dumps({"abc": {"duration": 9, "timestamps": [[0, 3], [2, 8]], "sentences": ["a", "b"]}})
    found, _ = spans(folder, "activity.json", activity, root="videos")
    assert [told(one) for one in found] == [(0.0, 3.0, "seconds", "a"), (2.0, 8.0, "seconds", "b")]


def test_times_of_msr_vtt_are_those_of_its_url_not_of_its_files(folder):
    videos = [{"video_id": "abc", "url": "https://y/z", "start time": 1.0, "end time": 5.0, "category": 3}]
    sentences = [{"caption": text, "video_id": "abc"} for text in ("one", "two")]
    data = json.dumps({"info": {}, "videos": videos, "sentences": sentences}, indent=1)
    (one,), _ = spans(folder, "msrvtt.json", data, root="videos")
    assert told(one) == (None, None, "", "one", "two")
    (one,), _ = spans(folder, "msrvtt.json", data)
    assert (one.uri, *told(one)) == ("https://y/z", 1.0, 5.0, "seconds", "one", "two")


# --- formats ----------------------------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"path": ["videos/abc.mp4", "videos/v 1.mkv"], "caption": ['één, "twee"\ndrie', "b"], "n": [1, 2]})


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "A.CSV", "a.json", "a.jsonl", "a.parquet", "a.arrow", "a.csv.gz", "a.txt"]
)
def test_the_content_says_what_a_list_is(folder, name):
    buffer = io.BytesIO()
    if "csv" in name.lower():
        buffer.write(TABLE.to_csv(index=False).encode())
    elif name.endswith((".tsv", ".txt")):
        buffer.write(TABLE.to_csv(index=False, sep="\t").encode())
    elif name.endswith((".json", ".jsonl")):
        buffer.write(TABLE.to_json(orient="records", lines=name.endswith("l")).encode())
    elif name.endswith(".parquet"):
        TABLE.to_parquet(buffer)
    else:
        with pa.ipc.new_stream(buffer, (table := pa.Table.from_pandas(TABLE)).schema) as writer:
            writer.write_table(table)
    data = gzip.compress(buffer.getvalue()) if name.endswith("gz") else buffer.getvalue()
    for suffix in {name, name.replace(".parquet", ".csv").replace(".arrow", ".parquet")}:
        found, _ = spans(folder, suffix, data)
        assert [(one.uri, *one.texts) for one in found] == [
            (f"{folder}/videos/abc.mp4", TABLE["caption"][0]),
            (f"{folder}/videos/v 1.mkv", "b"),
        ]
        assert [one.row for one in found] == [0, 1]
        assert str(json.loads(found[1].metadata)["n"]) == "2"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_csv_in_encodings_of_spreadsheets(folder, encoding):
    text = "path;caption\r\nvideos/abc.mp4;Ein Mädchen läuft über eine Brücke, und der Hund bellt\r\n"
    (one,), _ = spans(folder, "a.csv", text.encode(encoding))
    assert one.texts == ("Ein Mädchen läuft über eine Brücke, und der Hund bellt",)


def test_rows_come_in_pieces(folder, monkeypatch):
    rows = [{"path": f"{i}.mp4", "caption": "x" * (i % 7)} for i in range(5000)]
    monkeypatch.setattr(json_rows, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(tables, "CSV_BLOCK_BYTES", 2000)
    monkeypatch.setattr(tables, "BATCH_ROWS", 64)
    expected = [(i, f"{folder}/{i}.mp4") for i in range(5000)]
    for name, data in (
        ("a.json", json.dumps(rows, indent=1)),
        ("b.jsonl", "\n".join(map(json.dumps, rows))),
        ("c.csv", pd.DataFrame(rows).to_csv(index=False)),
    ):
        found, _ = spans(folder, name, data)
        assert [(one.row, one.uri) for one in found if one.texts] == [one for one in expected if one[0] % 7]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_bad_rows_are_refused_and_bad_spans_named(folder):
    header = ["path", "start", "end", "caption"]
    rows = [
        ["videos/abc.mp4", "1", "2", "good"],
        ["", "1", "2", "no video"],
        ["videos/abc.mp4", "3", "2", "backwards"],
        ["videos/abc.mp4", "x", "2", "no time"],
        ["videos/abc.mp4", "1", "", "half"],
        ["videos/abc.mp4", "", "", "whole"],
        ["videos/abc.mp4", "-1", "2", "before"],
        ["sftp://h/a.mp4", "1", "2", "protocol"],
    ]
    found, refused = spans(folder, "a.csv", csv_of(header, *rows) + "one,two\n")
    assert [told(one) for one in found if not one.refusal] == [(1.0, 2.0, "seconds", "good"), (None, None, "", "whole")]
    why = {one.row: one.refusal for one in found if one.refusal}
    assert why.keys() == {2, 3, 4, 6}
    assert "no length" in why[2]
    assert "'x' is no time" in why[3]
    assert "end of the span is empty" in why[4]
    where = f"{folder}/a.csv#row="
    assert {one.name: one.refusal for one in refused} == {
        f"{where}1": "row 1 of the list has no path",
        "sftp://h/a.mp4": refused[1].refusal,
        f"{where}8": "row 8 of the list: it has 2 cells, the header 4",
    }


def test_a_list_without_a_column_of_videos_is_one_sentence_and_columns_can_be_named(folder):
    data = csv_of(["clip", "words", "from", "to"], ["videos/abc.mp4", "hello", "0:01", "0:02"])
    with pytest.raises(
        UsageError, match=r"no column names the videos \(columns: clip, words, from, to\).*--columns video="
    ):
        spans(folder, "a.csv", data)
    with pytest.raises(UsageError, match="no column 'clop'"):
        spans(folder, "a.csv", data, columns=["video=clop"])
    with pytest.raises(UsageError, match="ROLE=COLUMN"):
        spans(folder, "a.csv", data, columns=["clip"])
    (one,), _ = spans(folder, "a.csv", data, columns=["video=clip", "caption=words", "start=from", "end=to"])
    assert told(one) == (1.0, 2.0, "seconds", "hello")
    (one,), _ = spans(folder, "b.csv", csv_of(["path", "start", "end"], ["a.mp4", 1, 2]), columns=["start=", "end="])
    assert not one.unit


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff" * 999, b'[{"path": "a.mp4"}, {"pa', b"PAR1 broken", b"\x1f\x8b\x08 broken"]
)
def test_damaged_lists_are_one_sentence(folder, data):
    with pytest.raises(UsageError, match=r"a\.csv: "):
        spans(folder, "a.csv", data)


def test_cells_of_strangers_run_nothing_and_end(folder):
    bombs = ["[" * 5000, "__import__('os').system('false')", "[9**9**9]", "('a',) * 10**9", "{" + "[" * 300]
    found, _ = spans(folder, "a.csv", csv_of(["path", "timestamp"], *(["videos/abc.mp4", one] for one in bombs)))
    assert len(found) == len(bombs)
    assert all(one.refusal for one in found)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1", 1), ("1.5s", 1.5), ("01:02", 62), ("1:00:00.250", 3600.25), ("00:00:05,5", 5.5), (7, 7), (2.5, 2.5)],
)
def test_times(value, seconds):
    assert parse_seconds(value) == seconds


def test_bytes_inside_of_tables_are_not_read(folder):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"video": pa.array([{"bytes": b"x" * 9, "path": "videos/abc.mp4"}], kind), "raw": [b"y"], "caption": ["c"]}
    )
    pq.write_table(table, folder / "hub.parquet")
    (one,) = read_list(str(folder / "hub.parquet"), {})
    assert (one.uri, one.texts, one.metadata) == (f"{folder}/videos/abc.mp4", ("c",), "")


def test_columns_of_our_own_tables_are_known():
    found = find_columns(["clip_id", "uri", "start_seconds", "end_seconds", "text", "licence"], {}, "x")
    assert (found.video, found.start, found.end, found.captions, found.licence) == (
        *("uri", "start_seconds", "end_seconds"), ("text",), "licence",
    )  # fmt: skip
