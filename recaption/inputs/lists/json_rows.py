"""Rows of JSON lists: one object per line, an array of objects, or one object that holds them.

    list(json_rows(io.StringIO('[{"video": "a.mp4"}, {"video": "b.mp4"}]'), "x.json"))      # [(0, {"video": "a.mp4"}), ...]

Lines and arrays are read piece by piece. An object (MSR-VTT's `videos` with `sentences`, or id -> record) is read whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from recaption.errors import UsageError

Row = dict[str, Any] | str
PIECE_CHARACTERS = 1 << 20
MAX_VALUE_CHARACTERS = 64 << 20
"""Of one element of an array, or one line."""
MAX_OBJECT_CHARACTERS = 1 << 30
"""Of a list that is one object: MSR-VTT's is 28 MB."""
RECORDS = ("videos", "data", "annotations", "clips", "database")
"""Keys under which an object may have its rows."""
TEXTS = ("sentences", "annotations", "captions")
"""Keys of further rows, each with the `video_id` of one of them and a caption."""
_SPACE = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()


def json_rows(file: TextIO, name: str) -> Iterator[tuple[int, Row]]:
    """(number, row) of each; in the place of a row that is no object, why.

    Raises:
        UsageError: no JSON.
    """
    first = file.readline(MAX_VALUE_CHARACTERS)
    while first and not first.strip():
        first = file.readline(MAX_VALUE_CHARACTERS)
    first = first.lstrip("\ufeff \t")
    if first.startswith("["):
        yield from enumerate(_elements(file, first, name))
        return
    try:
        whole = json.loads(first)
    except (ValueError, RecursionError):
        whole = None
    rest = file.readline(MAX_VALUE_CHARACTERS) if whole is not None else ""
    while rest and not rest.strip():
        rest = file.readline(MAX_VALUE_CHARACTERS)
    if whole is not None and rest:
        yield from enumerate(_lines(file, (whole, rest)))
        return
    if whole is None:
        text = first + file.read(MAX_OBJECT_CHARACTERS)
        if len(text) > MAX_OBJECT_CHARACTERS:
            raise UsageError(
                f"{name}: one JSON object of more than {MAX_OBJECT_CHARACTERS} characters: write JSON Lines"
            )
        try:
            whole = json.loads(text)
        except RecursionError:
            raise UsageError(f"{name}: the list cannot be read: its JSON is nested too deep") from None
    yield from enumerate(_rows_in(whole))


def _lines(file: TextIO, first: tuple[Any, str]) -> Iterator[Row]:
    yield _as_row(first[0])
    line = first[1]
    while line:
        if line.strip():
            try:
                yield _as_row(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield f"no JSON: {error}"
        line = file.readline(MAX_VALUE_CHARACTERS)


def _elements(file: TextIO, first: str, name: str) -> Iterator[Row]:
    """Elements of an array; some characters of the file are in memory at a time."""
    text, position, is_at_end = first, 1, False
    while True:
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        if text[position : position + 1] == "]":
            return
        try:
            value, end = _DECODER.raw_decode(text, position)
            if end < len(text) or is_at_end:  # a number may go on in the next piece
                position = end
                yield _as_row(value)
                continue
        except RecursionError:
            raise UsageError(f"{name}: the list cannot be read: its JSON is nested too deep") from None
        except ValueError:
            if is_at_end:
                raise UsageError(f"{name}: the list cannot be read: its JSON array breaks off or is none") from None
        if len(text) - position > MAX_VALUE_CHARACTERS:
            raise UsageError(
                f"{name}: the list cannot be read: an element of more than {MAX_VALUE_CHARACTERS} characters"
            )
        piece = file.read(max(PIECE_CHARACTERS, len(text) - position))
        is_at_end = not piece
        text, position = text[position:] + piece, 0


def _as_row(value: Any) -> Row:
    if isinstance(value, dict):
        return {str(key): one for key, one in value.items()}
    return {"video": value} if isinstance(value, str) else f"no JSON object: {json.dumps(value)[:60]}"


def _rows_in(whole: Any) -> Iterator[Row]:
    """Rows of one object: those of a list in it, or one per key."""
    if not isinstance(whole, dict):
        yield _as_row(whole)
        return
    records = next((whole[key] for key in RECORDS if _is_rows(whole.get(key))), None)
    if records is None and isinstance(database := whole.get("database"), dict):  # ActivityNet
        whole = database
    if records is not None:
        yield from map(_as_row, _with_texts(records, whole))
    elif whole and all(isinstance(value, (dict, str)) for value in whole.values()):
        for key, value in whole.items():
            yield {"video_id": key, **(value if isinstance(value, dict) else {"caption": value})}
    else:
        yield _as_row(whole)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _with_texts(records: list[dict[str, Any]], whole: dict[str, Any]) -> list[dict[str, Any]]:
    texts: dict[Any, list[str]] = {}
    for name in TEXTS:
        for one in whole[name] if _is_rows(whole.get(name)) and whole[name] is not records else ():
            if "video_id" in one and "caption" in one:
                texts.setdefault(one["video_id"], []).append(one["caption"])
    return [{**row, "caption": texts[key]} if (key := row.get("video_id", "")) in texts else row for row in records]
