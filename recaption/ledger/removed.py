"""Videos that were taken out of a run (`recaption prepare --remove`), remembered without anything that names them.

    removed = read_removed(run)                   # RUN/verdicts/removed.parquet, one row per video
    removed.has_video("0123456789abcdef")         # True: `prepare` gives an input of these bytes the status `removed`

Ids and uris are stored as hashes: they tell that a file is one that was removed, not which files were. An unfinished
removal has its plain list in `UNFINISHED` until the same command is run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from recaption.ledger.problems import Problem
from recaption.records import Video, conform
from recaption.run_folder import RunFolder

REMOVED = "verdicts/removed.parquet"
UNFINISHED = "verdicts/unfinished-removal.json"
REMOVED_SCHEMA = pa.schema(
    [
        ("video_key", pa.string()),
        ("uri_key", pa.string()),
        ("duration_seconds", pa.float64()),
        ("num_clips", pa.int64()),
        ("time", pa.timestamp("us", tz="UTC")),
    ]
)
"""One row per removed input; `video_key` is "" for one that could never be read."""


def key_of(text: str) -> str:
    """Hash of an id or uri that is remembered; "" of ""."""
    return hashlib.sha256(b"recaption removed\0" + text.encode()).hexdigest()[:24] if text else ""


@dataclass(frozen=True)
class Removed:
    """The removed inputs of a run."""

    table: pa.Table
    """Columns of `REMOVED_SCHEMA`."""
    video_keys: frozenset[str]
    unread_uri_keys: frozenset[str]
    """Of inputs whose bytes are unknown."""

    def has_video(self, video_id: str) -> bool:
        return key_of(video_id) in self.video_keys

    def has_input(self, uri: str, video_id: str) -> bool:
        """Whether an input was removed: its bytes, or, where those were never read, its name."""
        return self.has_video(video_id) or key_of(uri) in self.unread_uri_keys

    def unless_removed(self, video: Video) -> Video:
        """The row of an input; of one that was taken out, only how long it is, and what tells that the file is the same."""
        if not self.has_input(video.uri, video.video_id):
            return video
        names = ("uri", "num_bytes", "mtime_ns", "ctime_ns", "inode", "etag", "duration_seconds", "list_hash")
        same = {name: getattr(video, name) for name in names}
        return Video(video_id="", status="removed", reason="removed", **same)

    def without_remembered(self, videos: pa.Table) -> pa.Table:
        """Rows of RUN/videos without those of removed inputs that were listed again: each counts once, as it was."""
        keys = set(self.table["uri_key"].to_pylist())
        rows = zip(videos["status"].to_pylist(), videos["uri"].to_pylist(), strict=True)
        return videos.filter(pa.array([s != "removed" or key_of(uri) not in keys for s, uri in rows], pa.bool_()))


def read_removed(run: RunFolder) -> Removed:
    table = REMOVED_SCHEMA.empty_table()
    if run.exists(REMOVED):
        table = conform(run.read_table(REMOVED), REMOVED_SCHEMA)
    rows = table.select(["video_key", "uri_key"]).to_pylist()
    return Removed(
        table,
        frozenset(row["video_key"] for row in rows) - {""},
        frozenset(row["uri_key"] for row in rows if not row["video_key"]),
    )


def check_unfinished_removal(run: RunFolder) -> Iterator[Problem]:
    """A removal that was killed has left parts of the videos behind."""
    if run.exists(UNFINISHED):
        detail = "a removal was killed: run the same `recaption prepare --remove` again"
        yield Problem(kind="removal_unfinished", where=UNFINISHED, detail=detail)
