"""Reads any list of inputs: text with one per line, or a table.

read_list("videos.csv", columns={}, root="")      # yields ListedSpan(uri="/data/a.mp4", texts=("a dog",), ...)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from recaption.errors import UsageError, VideoError
from recaption.inputs.lists.columns import Columns, find_columns
from recaption.inputs.lists.entries import ListEntry
from recaption.inputs.lists.listed import ListedSpan, ListPlace, listed_in
from recaption.inputs.lists.tables import HEAD_BYTES, open_table
from recaption.inputs.lists.text_lines import lines_of
from recaption.inputs.open_input import open_input

TABLE_EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather")
LIST_EXTENSIONS = (".txt", *TABLE_EXTENSIONS)
"""Files that list inputs; also in upper case, and the text ones gzipped (`.csv.gz`)."""
OTHER_TABLES = (".xlsx", ".xls", ".m3u", ".m3u8", ".ffconcat")
"""Files that people list videos in and that are not read."""
_GZIPPED = re.compile(r"\.(csv|tsv|json|jsonl|ndjson)\.gz$")


def is_list(name: str) -> bool:
    return name.lower().endswith(LIST_EXTENSIONS) or bool(_GZIPPED.search(name.lower()))


def read_list(uri: str, columns: Mapping[str, str], root: str = "") -> Iterator[ListedSpan | ListEntry]:
    """All entries, in their order.

    Args:
        columns: role -> column (`columns.parse_columns`); the others are recognised by their names.
        root: folder or URI in which relative names are looked up first.

    Raises:
        UsageError: it cannot be read, is no list, or no column names the videos.
    """
    try:
        with open_input(uri) as opened:
            if uri.lower().endswith(".txt") and not _is_table(opened.file, columns, uri):
                yield from lines_of(uri, opened.file.read())
            else:
                yield from _rows_of(uri, opened.file, columns, ListPlace(uri, root))
    except VideoError as error:
        raise UsageError(f"{uri}: the list cannot be read: {error.detail}") from None


def _rows_of(uri: str, file: BinaryIO, named: Mapping[str, str], place: ListPlace) -> Iterator[ListedSpan | ListEntry]:
    table = open_table(file, uri)
    columns = find_columns(table.columns, named, uri)
    for number, row in table.rows:
        yield from listed_in(row, number, columns, place)


def _is_table(file: BinaryIO, named: Mapping[str, str], uri: str) -> bool:
    """Whether a .txt file is a table with a header: one of several columns, which names the videos and something else."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    first = head.splitlines()[0] if head else b""
    if not any(sign in first for sign in (b"\t", b",", b"{", b"[", b";", b"|")):
        return False
    try:
        table = open_table(file, uri)
        found: Columns = find_columns(table.columns, named, uri)
    except UsageError:
        return False
    finally:
        file.seek(0)
    return len(table.columns) > 1 and bool(found.captions or found.has_spans)
