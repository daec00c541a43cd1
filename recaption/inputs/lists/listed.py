"""Rows of a list as what they say of a video: a span of it or all of it, texts, and metadata.

    list(listed_in(row, 17, columns, place))       # [ListedSpan(uri="/data/a.mp4", start=1.0, end=3.0, texts=("a dog",))]

A row of Panda-70M has lists of spans and captions: it is as many spans. What of a row cannot be used is returned too, with
the reason: a row without a video becomes a failed input, a bad span a failed span of its video.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from recaption.inputs.lists.columns import Columns
from recaption.inputs.lists.entries import ListEntry, entry_of, existing_file, is_file_name
from recaption.inputs.lists.spans import Span, is_null, parse_frame, parse_pair, parse_seconds, parse_spans, unnested
from recaption.inputs.names import local_path, protocol_of, uri_of_path

VIDEO_EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif", ".m4v")
"""Of the file that an id without one names; the first that exists, else the first."""
YOUTUBE = "https://www.youtube.com/watch?v="
MAX_TEXT_CHARACTERS = 64 * 1024
SAID = ("start", "end", "unit", "refusal", "texts", "id", "source", "licence", "metadata")
"""Fields of `ListedSpan` that do not say where it stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedSpan:
    """What one row of a list says of one span of a video."""

    uri: str
    list_uri: str
    row: int
    """Number of the row, from 0."""
    position: int = 0
    """Number of the span in its row."""
    start: float | None = None
    end: float | None = None
    unit: str = ""
    """Of start and end: `seconds` from the first frame, or `frames`; "" = the whole video."""
    refusal: str = ""
    """Why it is no span."""
    texts: tuple[str, ...] = ()
    """The first is the original caption."""
    id: str = ""
    source: str = ""
    licence: str = ""
    metadata: str = ""
    """Other columns, as JSON."""

    @property
    def where(self) -> str:
        return f"{self.list_uri}#row={self.row}"

    @property
    def said(self) -> list[Any]:
        """What it says, wherever it stands: JSON-simple."""
        times = [self.start, self.end, self.unit, self.refusal]
        return [*times, list(self.texts), self.id, self.source, self.licence, self.metadata]

    @property
    def says_nothing(self) -> bool:
        """Whether it only names the video."""
        return not (self.unit or self.refusal or self.texts or self.id or self.source or self.licence or self.metadata)


@dataclass(frozen=True)
class ListPlace:
    """A list and where its videos are."""

    uri: str
    root: str = ""
    """Folder or URI that relative names are tried in before that of the list (`--video-root`)."""
    bases: tuple[str, ...] = field(init=False)
    """Names of lists in the folders where relative names are looked up."""

    def __post_init__(self) -> None:
        inside_root = (self.root.rstrip("/") + "/list",) if self.root else ()
        object.__setattr__(self, "bases", (*inside_root, self.uri))

    def entry(self, name: str) -> ListEntry:
        """The input that a path or URI means."""
        if not protocol_of(name) or "\0" in name:
            for base in self.bases:
                if (existing := existing_file(base, name, name)) is not None:
                    return ListEntry(name=existing)
        return entry_of(self.bases[0], name)

    def local_file(self, names: tuple[str, ...]) -> str | None:
        """The first of these relative names that is a local file."""
        for base in self.bases:
            folder = local_path(base)
            for name in names if folder is not None else ():
                path = os.path.join(os.path.dirname(os.path.abspath(folder or "")), name)
                if is_file_name(path):
                    return uri_of_path(path)
        return None


def listed_in(
    row: dict[str, Any] | str, number: int, columns: Columns, place: ListPlace
) -> Iterator[ListedSpan | ListEntry]:
    """The spans of a row; or a refused entry."""
    where = f"{place.uri}#row={number}"
    if isinstance(row, str):
        yield ListEntry(name=where, refusal=f"row {number} of the list: {row}")
        return
    entry, is_file = _video_of(row, columns, place)
    if entry is None:
        missing = columns.video or columns.url or columns.id
        yield ListEntry(name=where, refusal=f"row {number} of the list has no {missing}")
        return
    if entry.refusal:
        yield entry
        return
    spans: list[tuple[Span | ValueError | None, str]] = [(None, "")]
    if is_file and columns.has_times_of_url:
        columns = dataclasses.replace(columns, start="", end="")
    if columns.has_spans:
        try:
            spans = _spans_of(row, columns)
        except ValueError as error:
            spans = [(error, "")]
    texts = _texts_of(row, columns, len(spans))
    is_nested = len(spans) > 1 or _is_list_of_pairs(row.get(columns.span)) or _is_list_of_pairs(row.get(columns.frames))
    shared, split = _metadata_of(row, columns, len(spans) if is_nested else 0)
    named = _named_in(row, columns, entry.name)
    for position, (span, unit) in enumerate(spans):
        start, end = (None, None) if span is None or isinstance(span, ValueError) else span
        metadata = shared | {name: values[position] for name, values in split.items()}
        yield ListedSpan(
            uri=entry.name,
            list_uri=place.uri,
            row=number,
            position=position,
            start=start,
            end=end,
            unit=unit,
            refusal=str(span) if isinstance(span, ValueError) else "",
            texts=texts[position],
            metadata=_as_json(metadata),
            **named,
        )


def texts_and_metadata(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Fields of `ListedSpan` that are no place and no time."""
    metadata, _ = _metadata_of(row, columns, 0)
    (texts,) = _texts_of(row, columns, 1)
    return {"texts": texts, "metadata": _as_json(metadata), **_named_in(row, columns, "")}


def _named_in(row: dict[str, Any], columns: Columns, uri: str) -> dict[str, str]:
    named = {role: _text(row.get(getattr(columns, role))) for role in ("id", "source", "licence")}
    if not named["source"] and columns.url and (url := _text(row.get(columns.url))) != uri:
        named["source"] = url
    return named


def _as_json(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=str) if metadata else ""


# --- the video --------------------------------------------------------------------------------------------------------


def _video_of(row: dict[str, Any], columns: Columns, place: ListPlace) -> tuple[ListEntry | None, bool]:
    """(the input of a row, whether it is a file and not its URL); None where the row names none."""
    if _text(name := _text(row.get(columns.video), is_name=True)):
        return place.entry(name), True
    url, video_id = _text(row.get(columns.url)), _text(row.get(columns.id))
    names = _file_names(video_id, _text(row.get(columns.folder))) if video_id else ()
    if url and "/" in url:
        base = posixpath.basename(unquote(urlsplit(url).path))
        names += (base,) if posixpath.splitext(base)[1].lower() in VIDEO_EXTENSIONS else ()
    if (existing := place.local_file(names)) is not None:
        return ListEntry(name=existing), True
    if url:
        return place.entry(url), False
    if video_id and columns.has_youtube_ids:
        return ListEntry(name=YOUTUBE + quote(video_id)), False
    return (place.entry(names[0]), True) if names else (None, False)


def _file_names(video_id: str, folder: str) -> tuple[str, ...]:
    """Files that an id may mean, the likeliest first; none where it is no name."""
    if not re.fullmatch(r"[^\0/\\]+(/[^\0/\\]+)*", video_id) or ".." in video_id.split("/"):
        return ()
    with_extension = posixpath.splitext(video_id)[1].lower() in VIDEO_EXTENSIONS
    names = (video_id,) if with_extension else tuple(video_id + extension for extension in VIDEO_EXTENSIONS)
    below = tuple(posixpath.join(folder, name) for name in names) if folder and ".." not in folder else ()
    return (*below, *names)


# --- its spans, texts and metadata ------------------------------------------------------------------------------------


def _spans_of(row: dict[str, Any], columns: Columns) -> list[tuple[Span | ValueError | None, str]]:
    """(span, unit) of each span of a row; (None, "") is the whole video.

    Raises:
        ValueError: the row has times that are no spans.
    """
    for nested, (start, end), parse, unit in (
        (columns.span, (columns.start, columns.end), parse_seconds, "seconds"),
        (columns.frames, (columns.start_frame, columns.end_frame), parse_frame, "frames"),
    ):
        if not is_null(row.get(nested)):
            return [(span, unit) for span in parse_spans(row[nested], parse)]
        first, last = unnested(row.get(start)), unnested(row.get(end))
        if isinstance(first, (list, tuple)) and isinstance(last, (list, tuple)):
            if len(first) != len(last):
                raise ValueError(f"it has {len(first)} starts and {len(last)} ends")
            return [(_pair_or_error(a, b, parse), unit) for a, b in zip(first, last, strict=True)]
        if not (is_null(first) and is_null(last)):
            return [(parse_pair(first, last, parse), unit)]
    return [(None, "")]


def _is_list_of_pairs(value: Any) -> bool:
    found = unnested(value)
    return isinstance(found, (list, tuple)) and bool(found) and isinstance(found[0], (list, tuple, dict))


def _pair_or_error(start: Any, end: Any, parse: Any) -> Span | ValueError:
    try:
        return parse_pair(start, end, parse)
    except ValueError as error:
        return error


def _texts_of(row: dict[str, Any], columns: Columns, num_spans: int) -> list[tuple[str, ...]]:
    """Texts of each span; as many captions as spans are one each, else all are of all."""
    found: list[list[str]] = [[] for _ in range(num_spans)]
    for column in columns.captions:
        value = unnested(row.get(column))
        if isinstance(value, (list, tuple)) and len(value) == num_spans and num_spans > 1:
            per_span = [one if isinstance(one, (list, tuple)) else [one] for one in value]
        else:
            per_span = [value if isinstance(value, (list, tuple)) else [row.get(column)]] * num_spans
        for texts, values in zip(found, per_span, strict=True):
            texts += [text[:MAX_TEXT_CHARACTERS] for one in values if (text := _text(one))]
    return [tuple(dict.fromkeys(texts)) for texts in found]


def _metadata_of(row: dict[str, Any], columns: Columns, num_spans: int) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(other columns that are the same for all spans, column -> one value per span).

    Args:
        num_spans: of a row that has lists of them; else 0.
    """
    used = columns.used
    shared: dict[str, Any] = {}
    split: dict[str, list[Any]] = {}
    for name, value in row.items():
        if (name in used and not (name == columns.url and columns.video)) or is_null(value):
            continue
        nested = unnested(value) if num_spans else value
        if isinstance(nested, (list, tuple)) and num_spans and len(nested) == num_spans:
            split[name] = [_finite(one) for one in nested]
        else:
            shared[name] = _finite(value)
    return shared, split


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any, *, is_name: bool = False) -> str:
    """A cell as text, a name of a file with its spaces; "" where it is empty. Of Hugging Face's video column the path."""
    if type(value) is not str:
        if isinstance(value, dict):
            value = value.get("path")
        if isinstance(value, bytes):
            return os.fsdecode(value)
        if isinstance(value, (dict, list, tuple)):
            return ""
    if is_null(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # ids that pandas read beside an empty cell
    text = str(value)
    if "\0" in text:
        return ""
    return text if is_name else text.strip()
