"""Times and spans in lists: seconds, `HH:MM:SS.mmm`, frames, and nested lists of them, also as text.

parse_seconds("0:01:02.5")                                     # 62.5
parse_spans("[['0:00:01', '0:00:03'], ['0:00:04', '0:00:09']]", parse_seconds)   # [(1.0, 3.0), (4.0, 9.0)]
"""

from __future__ import annotations

import ast
import datetime
import json
import math
import re
from collections.abc import Callable
from typing import Any

MAX_LITERAL_CHARACTERS = 1 << 20
"""Of one cell: 20,000 spans."""
MAX_SECONDS = 1e7
"""Four months: what is later is no time in a video, but milliseconds or a date."""
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,4}):(\d{1,2}(?:[.,]\d*)?)")
_NUMBER_AND_UNIT = re.compile(r"([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(s|sec|secs|seconds?)?")
_FRAME_RANGE = re.compile(r"\s*(\d+)\s*[:\-]\s*(\d+)\s*")

NULLS = frozenset({"", "nan", "none", "null", "n/a", "<na>"})
MAX_NULL_CHARACTERS = 16
"""A cell of so many spaces is a name."""
Span = tuple[float, float]


def is_null(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or text that says so."""
    if type(value) is str:
        return len(value) < MAX_NULL_CHARACTERS and value.strip().lower() in NULLS
    return value is None or (isinstance(value, float) and math.isnan(value))


def parse_seconds(value: Any) -> float:
    """
    Raises:
        ValueError: not a time; the message says what it is.
    """
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, datetime.time):
        seconds = value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip())):
        hours, minutes, rest = clock.groups()
        seconds = int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))
    elif isinstance(value, str) and (number := _NUMBER_AND_UNIT.fullmatch(value.strip())):
        seconds = float(number[1])
    else:
        raise ValueError(f"{_short(value)} is no time in seconds or HH:MM:SS")
    if not 0 <= seconds <= MAX_SECONDS:  # False for NaN
        raise ValueError(f"{_short(value)} is no time in a video")
    return seconds


def parse_frame(value: Any) -> float:
    """A frame number, as a float like times are.

    Raises:
        ValueError: not a whole number.
    """
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not (number >= 0 and number.is_integer() and number < 1 << 53):
        raise ValueError(f"{_short(value)} is no frame number")
    return number


def parse_spans(value: Any, parse: Callable[[Any], float]) -> list[Span | ValueError]:
    """The spans of a cell: of one pair one, of a list of pairs all; in the place of one that is none, why.

    Raises:
        ValueError: it holds no pairs at all.
    """
    found = unnested(value)
    if isinstance(found, str) and parse is parse_frame and (both := _FRAME_RANGE.fullmatch(found)):
        found = [both[1], both[2]]
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, (list, tuple)) or not len(found):
        raise ValueError(f"{_short(value)} is no list of a start and an end")
    if len(found) == 2 and not any(isinstance(one, (list, tuple, dict)) for one in found):
        found = [found]
    return [_parse_pair(unnested(one), parse) for one in found]


def _parse_pair(pair: Any, parse: Callable[[Any], float]) -> Span | ValueError:
    if isinstance(pair, dict):
        pair = [pair.get("start"), pair.get("end")]
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return ValueError(f"{_short(pair)} is no list of a start and an end")
    try:
        return parse_pair(pair[0], pair[1], parse)
    except ValueError as error:
        return error


def parse_pair(start: Any, end: Any, parse: Callable[[Any], float]) -> Span:
    """
    Raises:
        ValueError: one of them is no time, or the end is not after the start.
    """
    for name, value in (("start", start), ("end", end)):
        if is_null(value):
            raise ValueError(f"the {name} of the span is empty")
    span = parse(start), parse(end)
    if span[0] >= span[1]:
        raise ValueError(f"the span from {_short(start)} to {_short(end)} has no length")
    return span


def unnested(value: Any) -> Any:
    """A cell with the text of a JSON or Python list as that list; everything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "(", "{"):
        return value
    if len(value) > MAX_LITERAL_CHARACTERS:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
