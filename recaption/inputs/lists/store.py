"""The inputs that lists name, sorted and grouped on disk: a list of 10^7 rows takes some megabytes of memory.

    with RowStore() as store:
        store.add(rows)                                    # ListedSpan and ListEntry, in any order
        for uri, refusal, spans in store.videos(): ...     # by uri; the spans of each in the order of the lists

SQLite sorts them in a temporary file below TMPDIR: about as large as the lists.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType

from recaption.inputs.lists.entries import ListEntry
from recaption.inputs.lists.listed import SAID, ListedSpan

CACHE_KILOBYTES = 32_000
ROWS_PER_INSERT = 10_000


class RowStore:
    """A temporary table of what lists name. Close it, or use it in a `with` statement."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="recaption-lists-")
        self.database = sqlite3.connect(os.path.join(self.folder, "rows.sqlite"))
        self.database.text_factory = lambda data: data.decode(errors="surrogateescape")
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KILOBYTES}", "temp_store=FILE"):
            self.database.execute(f"PRAGMA {setting}")
        self.database.execute("CREATE TABLE rows (uri TEXT, list TEXT, row INT, position INT, refusal TEXT, said TEXT)")

    def add(self, rows: Iterable[ListedSpan | ListEntry]) -> int:
        """Take in rows; returns how many."""
        count = 0
        iterator = iter(rows)
        while batch := [_as_tuple(row) for row in itertools.islice(iterator, ROWS_PER_INSERT)]:
            self.database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", batch)
            count += len(batch)
        return count

    def videos(self) -> Iterator[tuple[str, str, list[ListedSpan]]]:
        """(uri, why it cannot be an input, its spans) of each, sorted by uri.

        A span that several rows name with the same words is there once; rows that only name the video are left out.
        """
        query = "SELECT uri, refusal, list, row, position, said FROM rows ORDER BY uri, list, row, position"
        for uri, group in itertools.groupby(self.database.execute(query), lambda row: row[0]):
            rows = list(group)
            refusal = "" if any(not row[1] for row in rows) else rows[0][1]
            unique = {row[5]: row for row in reversed(rows) if row[5]}
            spans = [_as_span(row) for row in rows if row[5] and unique[row[5]] is row]
            if spans and all(span.refusal for span in spans):
                refusal = f"row {spans[0].row} of {spans[0].list_uri}: {spans[0].refusal}"
            yield uri, refusal, spans

    def names(self) -> Iterator[str]:
        """Every uri once, sorted."""
        return (uri for (uri,) in self.database.execute("SELECT DISTINCT uri FROM rows ORDER BY uri"))

    def close(self) -> None:
        """Remove it."""
        self.database.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_tuple(row: ListedSpan | ListEntry) -> tuple[str, str, int, int, str, str]:
    if isinstance(row, ListEntry):
        return row.name, "", 0, 0, row.refusal, ""
    if row.says_nothing:
        return row.uri, row.list_uri, row.row, row.position, "", ""
    said = json.dumps(row.said, ensure_ascii=False)
    return row.uri, row.list_uri, row.row, row.position, "", said.encode(errors="replace").decode()


def _as_span(row: tuple[str, str, str, int, int, str]) -> ListedSpan:
    values = dict(zip(SAID, json.loads(row[5]), strict=True))
    return ListedSpan(
        uri=row[0], list_uri=row[2], row=row[3], position=row[4], **values | {"texts": tuple(values["texts"])}
    )
