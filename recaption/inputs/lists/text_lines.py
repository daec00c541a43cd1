"""Text lists of inputs: one per line, as Windows, ffmpeg, spreadsheets and strangers write them.

    list(lines_of("/data/videos.txt", b"a.mp4\\n# comment\\nfile 'b.mp4'\\n"))     # [ListEntry(name="/data/a.mp4"), ...]

A line that names an existing file, as it stands, is that file; else it is a comment (`#`), a quoted name, a line for
ffmpeg's concat demuxer (`file 'a.mp4'`), a URI, or a name relative to the list.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator

from recaption.errors import UsageError
from recaption.inputs.lists.entries import ListEntry, entry_of, existing_file
from recaption.inputs.text_encoding import decode_text

CONCAT_DIRECTIVES = re.compile(
    r"(ffconcat\s+version|duration|inpoint|outpoint|stream|exact_stream_id|option|file_packet_\w+|stream_\w+|chapter)\b"
)
"""Lines of ffmpeg's concat demuxer that name no file."""
_LINE_END = re.compile(r"\r\n|\n|\r")
_LINE_END_BYTES = re.compile(rb"\r\n|\n|\r")
_CONCAT_FILE = re.compile(r"file\s+(?=\S)")


def lines_of(uri: str, data: bytes) -> Iterator[ListEntry]:
    """All entries, in their order.

    Raises:
        UsageError: it is no text.
    """
    text = decode_text(data)
    if text is None:
        raise UsageError(f"{uri}: a list is a text file with one input per line, this is none")
    lines = _LINE_END.split(text)
    raw_lines = _LINE_END_BYTES.split(data)
    has_raw_lines = len(raw_lines) == len(lines)  # not in UTF-16
    is_concat = any(_CONCAT_FILE.match(line) for line in lines)
    for number, line in enumerate(lines):
        as_bytes = os.fsdecode(raw_lines[number]) if has_raw_lines else line
        existing = existing_file(uri, line, as_bytes)
        if existing is not None:
            yield ListEntry(name=existing)
            continue
        name = line.strip()
        if not name or name.startswith("#") or (is_concat and CONCAT_DIRECTIVES.match(name)):
            continue
        if is_concat and (keyword := _CONCAT_FILE.match(name)):
            name = name[keyword.end() :]
        yield entry_of(uri, _unquoted(name))


def _unquoted(name: str) -> str:
    """A name without the quotes of a shell, of ffmpeg or of a spreadsheet."""
    if not name or name[0] not in "'\"":
        return name
    try:
        parts = shlex.split(name)
    except ValueError:
        return name
    return parts[0] if len(parts) == 1 and parts[0] else name
