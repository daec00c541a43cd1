"""Lists of inputs: text files with one per line, and parquet tables with a column of them.

    read_list("videos.txt")      # [ListEntry(name="/data/a.mp4"), ListEntry(name="/data/gone.mp4"), ...]

Lists come from Windows, from ffmpeg and from strangers. A line that names an existing file, as it stands, is that file;
else it is a comment (`#`), a quoted name, a line for ffmpeg's concat demuxer (`file 'a.mp4'`), a URI, or a name relative to
the list. An entry that cannot be an input is returned too, with the reason: it becomes a failed row.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from recaption.errors import UsageError, VideoError
from recaption.inputs.http import is_own_machine, open_http
from recaption.inputs.names import HTTP, check_protocol, local_path, protocol_of, remote_filesystem, uri_of_path
from recaption.inputs.text_encoding import decode_text

LIST_EXTENSIONS = (".txt", ".parquet")
"""Files that list inputs; also in upper case."""
OTHER_TABLES = (
    ".csv",
    ".tsv",
    ".jsonl",
    ".json",
    ".ndjson",
    ".xlsx",
    ".arrow",
    ".feather",
    ".m3u",
    ".m3u8",
    ".ffconcat",
)
"""Files that people list videos in and that are not read."""
URI_COLUMNS = ("uri", "path", "url", "video", "file")
"""Columns that a .parquet list may have its inputs in; the first that exists is read."""
CONCAT_DIRECTIVES = re.compile(
    r"(ffconcat\s+version|duration|inpoint|outpoint|stream|exact_stream_id|option|file_packet_\w+|stream_\w+|chapter)\b"
)
"""Lines of ffmpeg's concat demuxer that name no file."""
_LINE_END = re.compile(r"\r\n|\n|\r")
_LINE_END_BYTES = re.compile(rb"\r\n|\n|\r")
_CONCAT_FILE = re.compile(r"file\s+(?=\S)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ListEntry:
    """One entry: an input, or why it is none."""

    name: str
    """URI of the input; of a refused entry what stands there, or where in the list it stands."""
    refusal: str = ""


def is_list(name: str) -> bool:
    return name.lower().endswith(LIST_EXTENSIONS)


def read_list(uri: str) -> list[ListEntry]:
    """All entries, in their order.

    Raises:
        UsageError: it cannot be read, is no text, or has no column of inputs.
    """
    data = _read(uri)
    if uri.lower().endswith(".txt"):
        entries = _lines_of(uri, data)
    else:
        entries = _rows_of(uri, data)
    return list(entries)


def _read(uri: str) -> bytes:
    path = local_path(uri)
    try:
        if path is not None:
            with open(path, "rb") as file:
                return file.read()
        if protocol_of(uri) in HTTP:
            with open_http(uri) as remote:
                return b"".join(remote.blocks())
        fs, remote_path = remote_filesystem(uri)
        return bytes(fs.cat_file(remote_path))
    except UsageError:
        raise
    except VideoError as error:
        raise UsageError(f"{uri}: the list cannot be read: {error.detail}") from None
    except Exception as error:  # storage backends have no common exception
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(f"{uri}: the list cannot be read: {cause}") from None


# --- text -------------------------------------------------------------------------------------------------------------


def _lines_of(uri: str, data: bytes) -> Iterator[ListEntry]:
    text = decode_text(data)
    if text is None:
        raise UsageError(f"{uri}: a list is a text file with one input per line, this is none")
    lines = _LINE_END.split(text)
    raw_lines = _LINE_END_BYTES.split(data)
    has_raw_lines = len(raw_lines) == len(lines)  # not in UTF-16
    is_concat = any(_CONCAT_FILE.match(line) for line in lines)
    for number, line in enumerate(lines):
        as_bytes = os.fsdecode(raw_lines[number]) if has_raw_lines else line
        existing = _existing(uri, line, as_bytes)
        if existing is not None:
            yield ListEntry(name=existing)
            continue
        name = line.strip()
        if not name or name.startswith("#") or (is_concat and CONCAT_DIRECTIVES.match(name)):
            continue
        if is_concat and (keyword := _CONCAT_FILE.match(name)):
            name = name[keyword.end() :]
        yield entry_of(uri, _unquoted(name))


def _existing(uri: str, line: str, as_bytes: str) -> str | None:
    """The local file that a line names as it stands, spaces and all; None where there is none."""
    list_path = local_path(uri)
    if list_path is None:
        return None
    folder = os.path.dirname(os.path.abspath(list_path))
    names = (as_bytes, line, as_bytes.strip(), line.strip(), line.strip().replace("\\", "/"))  # the last: from Windows
    for name in dict.fromkeys(names):
        path = os.path.join(folder, name)
        if name.strip() and "\0" not in name and _is_file_name(path):
            return uri_of_path(path)
    return None


def _is_file_name(path: str) -> bool:
    try:
        return os.path.lexists(path) and not os.path.isdir(path)
    except (OSError, ValueError):
        return False


def _unquoted(name: str) -> str:
    """A name without the quotes of a shell, of ffmpeg or of a spreadsheet."""
    if not name or name[0] not in "'\"":
        return name
    try:
        parts = shlex.split(name)
    except ValueError:
        return name
    return parts[0] if len(parts) == 1 and parts[0] else name


# --- parquet ----------------------------------------------------------------------------------------------------------


def _rows_of(uri: str, data: bytes) -> Iterator[ListEntry]:
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{uri}: does not open as a parquet table: {' '.join(str(error).split())[:200]}") from None
    column = next((c for c in URI_COLUMNS if c in table.column_names), None)
    if column is None:
        raise UsageError(f"{uri}: needs a column named one of {', '.join(URI_COLUMNS)}, has {table.column_names}")
    for number, value in enumerate(table.column(column).to_pylist()):
        name = _name_in(value)
        if not name.strip():
            yield ListEntry(name=f"{uri}#row={number}", refusal=f"row {number} of the list has no {column}")
        else:
            yield ListEntry(name=existing) if (existing := _existing(uri, name, name)) else entry_of(uri, name)


def _name_in(value: Any) -> str:
    if isinstance(value, dict):  # Hugging Face's video column: {"path": ..., "bytes": ...}
        value = value.get("path")
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return "" if value is None or "\0" in str(value) else str(value)


# --- names ------------------------------------------------------------------------------------------------------------


def entry_of(uri: str, name: str) -> ListEntry:
    """The input that an entry of the list `uri` names: a URI, an absolute path, or a name relative to the list."""
    if protocol_of(name):
        return _entry_of_uri(uri, name)
    if name.startswith("/"):
        return ListEntry(name=uri_of_path(name))
    path = local_path(uri)
    if path is not None:
        return ListEntry(name=uri_of_path(os.path.join(os.path.dirname(path), name)))
    protocol, _, rest = uri.partition("://")
    if protocol in HTTP:
        name = quote(name, safe="/%:@!$&'()*+,;=~?")
    return ListEntry(name=f"{protocol}://{posixpath.normpath(posixpath.join(posixpath.dirname(rest), name))}")


def _entry_of_uri(list_uri: str, name: str) -> ListEntry:
    try:
        check_protocol(name)
    except UsageError as error:
        return ListEntry(name=name, refusal=str(error).removeprefix(f"{name}: "))
    path = local_path(name)
    if path is not None:
        literal = name.partition("://")[2]
        return ListEntry(name=uri_of_path(literal if os.path.lexists(literal) else path))
    is_remote_list = local_path(list_uri) is None
    if is_remote_list and protocol_of(name) in HTTP and is_own_machine(name):
        return ListEntry(name=name, refusal="a remote list cannot name this machine's own address")
    return ListEntry(name=name)
