"""Spans that lists name, in a run folder: as the lists say (RUN/listed) and as clips (RUN/spans).

    read_listed(run, 3)["/data/a.mp4"]           # [ListedSpan(start=1.0, end=3.0, texts=("a dog",), ...)]
    read_texts(run, 3)["00c0ffee...-0000024"]    # ("a dog",): the texts that lists have for this clip

RUN/listed is written with the list of inputs, before any of them is read; a file of it holds `PARTS_PER_FILE` parts.
RUN/spans has a file per part of `prepare`, where lists say something of its videos: one row per span, failed ones too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recaption.inputs.lists.listed import SAID, ListedSpan
from recaption.ledger.problems import Problem
from recaption.records import Video
from recaption.run_folder import RunFolder, recipe_hash

PARTS_PER_FILE = 256
"""Of RUN/listed: 4096 videos."""
PARTS_PER_GROUP = 16
"""Of its row groups."""
LISTED_PARTS, SPAN_PARTS = "listed/part-*.parquet", "spans/part-*.parquet"
TEXTS_HASH = "texts_hash"
"""Metadata of a part of RUN/spans: hash of the texts of its clips."""
_SAID_FIELDS = [
    ("list_uri", pa.string()),
    ("row", pa.int64()),
    ("position", pa.int64()),
    ("start", pa.float64()),
    ("end", pa.float64()),
    ("unit", pa.string()),
    ("texts", pa.list_(pa.string())),
    ("id", pa.string()),
    ("source", pa.string()),
    ("licence", pa.string()),
    ("metadata", pa.string()),
]
LISTED_SCHEMA = pa.schema([("part", pa.int64()), ("uri", pa.string()), *_SAID_FIELDS, ("refusal", pa.string())])
SPANS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        *_SAID_FIELDS,
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("clip_ids", pa.list_(pa.string())),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""`clip_ids`: its clips, one unless it was cut at shots, all of the video where it has no times. `status`: ok or failed,
then `reason` is `bad_span`. `metadata`: other columns of the list, as JSON."""


_PLACE_AND_SAID = ("uri", "list_uri", "row", "position", *(name for name in SAID if name != "refusal"))


def listed_file(part: int) -> str:
    """File of RUN/listed with the rows of a part."""
    return f"listed/part-{part // PARTS_PER_FILE:05d}.parquet"


def list_hash(spans: Sequence[ListedSpan]) -> str:
    """Hash of what lists say of a video, wherever they say it; "" of nothing."""
    return recipe_hash([span.said for span in spans]) if spans else ""


def listed_rows(part: int, spans: Iterable[ListedSpan]) -> list[dict[str, Any]]:
    """Rows of `LISTED_SCHEMA`."""
    return [{"part": part, **_as_row(span), "refusal": span.refusal} for span in spans]


def write_listed(run: RunFolder, name: str, rows: list[dict[str, Any]]) -> None:
    """Replace a file of RUN/listed.

    Args:
        rows: of `LISTED_SCHEMA`, in any order.
    """
    rows = sorted(rows, key=lambda row: (row["part"], row["uri"], row["list_uri"], row["row"], row["position"]))
    groups = itertools.groupby(rows, lambda row: row["part"] // PARTS_PER_GROUP)
    tables = (pa.Table.from_pylist(list(group), schema=LISTED_SCHEMA) for _, group in groups)
    run.write_batches(name, LISTED_SCHEMA, tables)


def span_row(span: ListedSpan, **found: Any) -> dict[str, Any]:
    """A row of `SPANS_SCHEMA`.

    Args:
        found: the columns that `prepare` adds.
    """
    defaults: dict[str, Any] = {
        "start_frame": None,
        "end_frame": None,
        "clip_ids": [],
        "status": "ok",
        "reason": None,
        "detail": "",
    }
    return _as_row(span) | defaults | found


def failed_rows(video: Video, listed: Iterable[ListedSpan]) -> list[dict[str, Any]]:
    """Rows of `SPANS_SCHEMA` of a video that failed; none of one that was taken out."""
    if video.status != "failed":
        return []
    found: dict[str, Any] = {
        "video_id": video.video_id,
        "status": "failed",
        "reason": video.reason,
        "detail": "its video failed",
    }
    return [span_row(span, **found | {"detail": span.refusal or found["detail"]}) for span in listed]


def listed_from_spans(rows: Iterable[dict[str, Any]]) -> Iterator[ListedSpan]:
    """What lists said, by rows of `SPANS_SCHEMA`."""
    for row in rows:
        values = {name: row[name] for name in ListedSpan.__dataclass_fields__ if name != "refusal"}
        is_refused = bool(row["unit"]) and row["start"] is None
        yield ListedSpan(**values | {"texts": tuple(row["texts"]), "refusal": row["detail"] if is_refused else ""})


def _as_row(span: ListedSpan) -> dict[str, Any]:
    row = {name: getattr(span, name) for name in _PLACE_AND_SAID}
    row["texts"] = list(span.texts)
    return row


def read_listed(run: RunFolder, part: int) -> dict[str, list[ListedSpan]]:
    """Uri -> what lists say of it, of the videos of a part."""
    name = listed_file(part)
    if not run.exists(name):
        return {}
    return spans_by_uri(run.read_rows_of(name, "part", part).to_pylist())


def spans_by_uri(rows: Iterable[dict[str, Any]]) -> dict[str, list[ListedSpan]]:
    """Rows of `LISTED_SCHEMA` by uri, in their order."""
    found: dict[str, list[ListedSpan]] = {}
    for row in rows:
        values = {name: row[name] for name in ListedSpan.__dataclass_fields__} | {"texts": tuple(row["texts"])}
        found.setdefault(row["uri"], []).append(ListedSpan(**values))
    return found


# --- texts ------------------------------------------------------------------------------------------------------------


def read_texts(run: RunFolder, part: int) -> dict[str, tuple[str, ...]]:
    """Clip id -> the texts that lists have for it, of one part of clips; the first is its original caption."""
    name = f"spans/part-{part:05d}.parquet"
    return texts_of(run.read_columns(name, ["clip_ids", "texts"]).to_pylist()) if run.exists(name) else {}


def texts_of(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Clip id -> texts, by rows of `SPANS_SCHEMA`."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for clip_id in row["clip_ids"] if row["texts"] else ():
            found.setdefault(clip_id, {}).update(dict.fromkeys(row["texts"]))
    return {clip_id: tuple(texts) for clip_id, texts in found.items()}


def read_clip_metadata(run: RunFolder) -> dict[str, dict[str, str]]:
    """Clip id -> id, source, licence and metadata (JSON) that the first row of a list with this clip has."""
    found: dict[str, dict[str, str]] = {}
    for name in run.list(SPAN_PARTS):
        for row in run.read_columns(name, ["clip_ids", "id", "source", "licence", "metadata"]).to_pylist():
            for clip_id in row.pop("clip_ids"):
                found.setdefault(clip_id, row)
    return found


def texts_hash(run: RunFolder, part: int) -> str:
    """Hash of the texts that lists have for the clips of a part; "" where there are none."""
    name = f"spans/part-{part:05d}.parquet"
    return run.table_metadata(name).get(TEXTS_HASH, "") if run.exists(name) else ""


# --- counts and checks ------------------------------------------------------------------------------------------------


def span_counts(run: RunFolder) -> dict[str, Any]:
    """Numbers of spans by state, and those that failed alone; {} where no list names spans."""
    total, num_failed = 0, 0
    failures: list[dict[str, Any]] = []
    columns = ["list_uri", "row", "unit", "status", "reason", "detail"]
    for name in run.list(SPAN_PARTS):
        table = run.read_columns(name, columns)
        total += pc.sum(pc.not_equal(table["unit"], "")).as_py() or 0
        is_failed = pc.and_(pc.equal(table["status"], "failed"), pc.not_equal(table["unit"], ""))
        num_failed += pc.sum(is_failed).as_py() or 0
        failures += table.filter(pc.and_(is_failed, pc.equal(table["reason"], "bad_span"))).to_pylist()
    if not total:
        return {}
    listed = [
        {"uri": f"{r['list_uri']}#row={r['row']}", "reason": r["reason"], "detail": r["detail"]} for r in failures
    ]
    return {"total": total, "ok": total - num_failed, "failed": num_failed, "failures": listed}


def check_spans(name: str, spans: pa.Table, videos: pa.Table, clip_ids: set[str]) -> Iterator[Problem]:
    """The clips that spans of a part name are there, and every video that lists say something of has its spans.

    Args:
        name: file of the spans.
        videos: of the same part, with `uri`, `status` and `list_hash`.
        clip_ids: of the same part.
    """
    for row in spans.select(["uri", "clip_ids"]).to_pylist():
        for clip_id in row["clip_ids"]:
            if clip_id not in clip_ids:
                yield Problem(kind="span_without_clip", where=f"{name}:{clip_id}", detail="RUN/clips does not have it")
    with_spans = set(spans["uri"].to_pylist())
    for row in videos.select(["uri", "status", "list_hash"]).to_pylist():
        if row["status"] == "ok" and row["list_hash"] and row["uri"] not in with_spans:
            detail = "its list has rows for it, RUN/spans has none"
            yield Problem(kind="span_missing", where=f"{name}:{row['uri']}", detail=detail)
