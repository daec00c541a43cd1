"""Rows of a table, one batch in memory at a time: CSV, TSV, JSON, JSON Lines, Parquet, Arrow; also gzipped.

    with open("list.csv.gz", "rb") as file:
        table = open_table(file, "list.csv.gz")
        table.columns                               # ["videoID", "timestamp", "caption"]
        for number, row in table.rows: ...          # 0, {"videoID": "abc", ...}; or why the row cannot be read

The content says which it is, whatever the suffix. CSV cells are text; nothing is guessed but the delimiter and the encoding.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from recaption.errors import UsageError
from recaption.inputs.lists.json_rows import json_rows
from recaption.inputs.text_encoding import BYTE_ORDER_MARKS, likely_encoding

Row = dict[str, Any] | str
"""Column -> value; or why the row cannot be read."""
HEAD_BYTES = 1 << 16
BATCH_ROWS = 4096
CSV_BLOCK_BYTES = 4 << 20
"""Read at a time; a row has to be shorter."""
DELIMITERS = ",\t;|"
NUM_ROWS_FOR_COLUMNS = 64
"""Of JSON, where each row has its own keys."""
_GZIP, _PARQUET, _ARROW_FILE, _ARROW_STREAM = b"\x1f\x8b", b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class Table:
    """A table that is read once."""

    columns: list[str]
    rows: Iterator[tuple[int, Row]]
    """Number from 0, row."""


def open_table(file: BinaryIO, name: str) -> Table:
    """
    Args:
        file: at its start.
        name: for errors.

    Raises:
        UsageError: it is none of these, or damaged; from `rows` too.
    """
    with _as_usage_errors(name):
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if head.startswith(_GZIP):
            unpacked: Any = gzip.GzipFile(fileobj=file)
            head, unpacked_again = unpacked.read(HEAD_BYTES), gzip.GzipFile(fileobj=file)
            file.seek(0)
            file = unpacked_again  # type: ignore[assignment]
        if head.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM)):
            table = _open_arrow(file, head)
        else:
            table = _open_text(file, head, name)
    return Table(table.columns, _with_usage_errors(table.rows, name))


@contextlib.contextmanager
def _as_usage_errors(name: str) -> Iterator[None]:
    """What readers raise as one sentence about the list."""
    try:
        yield
    except UsageError:
        raise
    except (pa.ArrowException, OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise UsageError(f"{name}: the list cannot be read: {' '.join(str(error).split())[:200]}") from None


def _with_usage_errors(rows: Iterator[tuple[int, Row]], name: str) -> Iterator[tuple[int, Row]]:
    with _as_usage_errors(name):
        yield from rows


# --- Parquet and Arrow ------------------------------------------------------------------------------------------------


def _open_arrow(file: BinaryIO, head: bytes) -> Table:
    if head.startswith(_PARQUET):
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        wanted = [_readable_part(field) for field in schema]
        columns = [path for path in wanted if path]
        batches = parquet.iter_batches(BATCH_ROWS, columns=columns)
    elif head.startswith(_ARROW_FILE):
        reader = pa.ipc.open_file(file)
        schema, batches = reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        stream = pa.ipc.open_stream(file)
        schema, batches = stream.schema, iter(stream)
    names = [field.name for field in schema if _readable_part(field)]
    return Table(names, _rows_of_batches(batches, names))


def _readable_part(field: pa.Field) -> str:
    """Path of a column to be read; "" for one of bytes; of Hugging Face's video column only the path."""
    if pa.types.is_struct(field.type):
        children = [field.type.field(i).name for i in range(field.type.num_fields)]
        if "path" in children and "bytes" in children:
            return f"{field.name}.path"
    return "" if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) else str(field.name)


def _rows_of_batches(batches: Iterator[pa.RecordBatch], names: list[str]) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):  # Arrow files hold batches of any size
            for row in batch.slice(start, BATCH_ROWS).select(names).to_pylist():
                yield number, row
                number += 1


# --- text -------------------------------------------------------------------------------------------------------------


def _open_text(file: BinaryIO, head: bytes, name: str) -> Table:
    encoding = _encoding_of(head)
    if encoding is None:
        raise UsageError(f"{name}: a list is a table (CSV, TSV, JSON, JSON Lines, Parquet, Arrow), this is none")
    text = head.decode(encoding, errors="replace").lstrip("\ufeff")
    if text.lstrip()[:1] in ("[", "{"):
        rows = json_rows(io.TextIOWrapper(file, encoding=encoding, errors="strict"), name)
        first = list(itertools.islice(rows, NUM_ROWS_FOR_COLUMNS))
        columns = dict.fromkeys(column for _, row in first if isinstance(row, dict) for column in row)
        return Table(list(columns), itertools.chain(first, rows))
    if not text.strip():
        raise UsageError(f"{name}: the list is empty")
    return _open_csv(file, encoding, text, _delimiter(text, name))


def _encoding_of(head: bytes) -> str | None:
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return "utf-8-sig" if encoding == "utf-8" else encoding
    return likely_encoding(head)


def _delimiter(text: str, name: str) -> str:
    """The one that splits the first line into most columns."""
    header = next(iter(text.splitlines()), "")
    preferred = "\t" if ".tsv" in name.lower() else ","
    return max(DELIMITERS, key=lambda one: (len(next(csv.reader([header], delimiter=one), [])), one == preferred))


def _open_csv(file: BinaryIO, encoding: str, text: str, delimiter: str) -> Table:
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    names = [f"{name}.{header[:i].count(name)}" if name in header[:i] else name for i, name in enumerate(header)]
    invalid: dict[int, str] = {}

    def on_invalid_row(row: pyarrow.csv.InvalidRow) -> str:
        invalid[row.number - 2] = (
            f"it has {row.actual_columns} cells, the header {row.expected_columns}"  # 1: the header
        )
        return "skip"

    reader = pyarrow.csv.open_csv(
        file,
        pyarrow.csv.ReadOptions(
            use_threads=False, block_size=CSV_BLOCK_BYTES, column_names=names, skip_rows=1, encoding=encoding
        ),
        pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=True, invalid_row_handler=on_invalid_row
        ),
        pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
    named = [name for name in names if name]  # pandas writes its index without a name
    return Table(named, _csv_rows(reader, named, invalid))


def _csv_rows(reader: Any, names: list[str], invalid: dict[int, str]) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in reader:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for row in batch.slice(start, BATCH_ROWS).select(names).to_pylist():
                while number in invalid:
                    yield number, invalid.pop(number)
                    number += 1
                yield number, row
                number += 1
    yield from sorted(invalid.items())
