"""What thresholds cost, asked of the stored scores: nothing is decoded, scored or written.

    changed = parse_changes(["motion=0.02", "text_area=0.1"], thresholds)      # FilterThresholds
    steps = waterfall(ask(changed), weights)                                    # what is left after each filter
    columns = columns_of(clips, changed, ask)                                   # ask = partial(verdicts, clips)
    curve_of(columns["min_motion"])                                             # share kept as one threshold moves
    around(columns["min_motion"])                                               # the clips just inside and outside

Everything is one pass over columns: a few vectorised steps per filter, 8 bytes per clip and score.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recaption.errors import DROP_REASONS, UsageError
from recaption.quality.filters import FILTERS, SLACK, Filter, FilterThresholds, outside, score_column

NUM_POINTS = 160
"""Of a curve: more than a chart is pixels wide shows nothing more."""


# --- changes ----------------------------------------------------------------------------------------------------------


def _sides() -> dict[str, list[tuple[Filter, str]]]:
    """Score -> its thresholds, each with its filter, in the order of `FILTERS`."""
    found: dict[str, list[tuple[Filter, str]]] = {}
    for one in FILTERS:
        fields = [name for name in (one.lowest, one.highest) if name]
        found.setdefault(one.score, []).extend((one, name) for name in fields)
    return found


OF_CAPTIONS = "max_clips_per_caption"


def parse_changes(texts: Sequence[str], thresholds: FilterThresholds) -> FilterThresholds:
    """Thresholds with some of them moved.

    Each text is `NAME=VALUE`, or several with commas between. NAME is a score (`motion`) or a threshold by its own name,
    which a score with a lowest and a highest needs (`min_luma`, `max_luma`); VALUE is a number or `off`.

    Raises:
        UsageError: no such score, no number, or a score with two sides; the sentence names what there is.
    """
    changes: dict[str, Any] = {}
    for text in ",".join(texts).split(","):
        match = re.fullmatch(r"\s*([A-Za-z_-]+)\s*=\s*(\S+)\s*", text)
        if match is None:
            raise UsageError(f"--what-if {text.strip()!r}: say NAME=NUMBER or NAME=off, such as motion=0.02")
        name = _field(match[1].replace("-", "_"))
        if name in changes:
            raise UsageError(f"--what-if names {name} twice")
        changes[name] = _value(name, match[2])
    return dataclasses.replace(thresholds, **changes)


def _field(name: str) -> str:
    """Name of the threshold that a score, or the threshold's own name, stands for."""
    sides = _sides()
    if name == OF_CAPTIONS:
        raise UsageError(f"--what-if {name}: it is asked of captions, which a clip has only once the filters kept it")
    if name in {field.name for field in dataclasses.fields(FilterThresholds)}:
        return name
    if name not in sides:
        asked = {field for found in sides.values() for _, field in found}
        asked |= {OF_CAPTIONS}
        others = [field.name for field in dataclasses.fields(FilterThresholds) if field.name not in asked]
        raise UsageError(f"--what-if {name}: no such score; there are {', '.join([*sides, *others])}")
    fields = [field for _, field in sides[name]]
    if len(fields) > 1:
        raise UsageError(f"--what-if {name}: it has a lowest and a highest, so say {' or '.join(fields)}")
    return fields[0]


def _value(name: str, text: str) -> float | bool | None:
    hint = typing.get_type_hints(FilterThresholds)[name]
    if hint is bool:
        if text not in ("on", "off"):
            raise UsageError(f"--what-if {name}={text}: say on or off")
        return text == "on"
    if text == "off" and type(None) in typing.get_args(hint):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--what-if {name}={text}: a number, or off")
    return value


def changed_fields(before: FilterThresholds, after: FilterThresholds) -> list[str]:
    """Names of the thresholds that differ, in their own order."""
    names = [field.name for field in dataclasses.fields(before)]
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def not_computed(clips: pa.Table) -> list[str]:
    """Scores that filters ask for and no clip has. A threshold on one of them drops nothing."""
    return [score for score in _sides() if clips.num_rows and np.isnan(score_column(clips, score)).all()]


# --- waterfall --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is left after one filter."""

    reason: str
    """Of `errors.DROP_REASONS`; empty for the first step, before any filter."""
    clips: int
    left: dict[str, float]
    """Name of a weight (`seconds`, `tokens`) -> its sum over the clips that are left."""


def waterfall(
    reasons: Sequence[str | None], weights: Mapping[str, np.ndarray], *, also: Sequence[str] = ()
) -> list[Step]:
    """Clips, and sums of their weights, left after each filter in the order in which verdicts are reached.

    Filters that are off are steps too, so that two waterfalls stand side by side.

    Args:
        reasons: of `filters.verdicts`.
        weights: name -> (N,) what each clip weighs.
        also: reasons beside those of the filters that are steps.
    """
    given = np.array([reason or "" for reason in reasons], object)
    steps_of = {one.reason for one in FILTERS} | {"duplicate", *also}
    order = [reason for reason in DROP_REASONS if reason in steps_of]
    is_left = np.ones(len(given), bool)
    steps = []
    for reason in ["", *order]:
        if reason:
            is_left &= given != reason
        left = {name: math.fsum(values[is_left]) for name, values in weights.items()}
        steps.append(Step(reason=reason, clips=int(is_left.sum()), left=left))
    return steps


# --- curves -----------------------------------------------------------------------------------------------------------

Ask = Callable[[FilterThresholds], Sequence[str | None]]
"""`filters.verdicts` of the clips in question."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one threshold asks, and of which clips it alone decides."""

    field: str
    """Of `FilterThresholds`."""
    one: Filter
    """The filter with this threshold only."""
    thresholds: FilterThresholds
    values: np.ndarray
    """(N,) scores, NaN where not computed."""
    passes: np.ndarray
    """(N,) bool: which clips everything else lets pass."""

    @property
    def is_lowest(self) -> bool:
        """Whether clips below the threshold are dropped; else those above it."""
        return self.one.lowest is not None

    @property
    def threshold(self) -> float | None:
        found: float | None = getattr(self.thresholds, self.field)
        return found

    def is_outside(self, at: float | None) -> np.ndarray:
        """Which clips, (N,) bool, a threshold of `at` drops."""
        moved: dict[str, Any] = {self.field: at}
        return outside(self.values, self.one, dataclasses.replace(self.thresholds, **moved))


def columns_of(clips: pa.Table, thresholds: FilterThresholds, ask: Ask) -> dict[str, Column]:
    """Threshold -> its column, in the order of `FILTERS`; those whose score no clip has are left out."""
    scores = {score: score_column(clips, score) for score in _sides()}
    found: list[tuple[str, Filter]] = []
    for score, sides in _sides().items():
        if clips.num_rows and not np.isnan(scores[score]).all():
            for one, field in sides:
                low, high = (field, None) if field == one.lowest else (None, field)
                found.append((field, Filter(one.reason, score, lowest=low, highest=high)))
    is_outside = {field: outside(scores[one.score], one, thresholds) for field, one in found}
    num_outside = np.sum(list(is_outside.values()), axis=0, dtype=np.int32)
    # Copies are looked for among all clips, whatever the filters say about them.
    all_off: dict[str, Any] = dict.fromkeys(field for sides in _sides().values() for _, field in sides)
    is_original = np.fromiter((r is None for r in ask(dataclasses.replace(thresholds, **all_off))), bool)
    return {
        field: Column(
            field=field,
            one=one,
            thresholds=thresholds,
            values=scores[one.score],
            passes=is_original & (num_outside - is_outside[field] == 0),
        )
        for field, one in found
    }


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Share of all clips that are kept, as one threshold moves and the others stay."""

    thresholds: np.ndarray
    """(P,) ascending: where the curve was asked."""
    share_kept: np.ndarray
    """(P,) by all filters together."""
    share_inside: np.ndarray
    """(P,) by this threshold alone."""


def curve_of(column: Column, *, also_at: Sequence[float] = ()) -> Curve:
    """The retention curve of one threshold.

    Args:
        also_at: thresholds that are asked beside those that the values suggest and the present one.
    """
    present = () if column.threshold is None else (column.threshold,)
    points = _points(column.values, [*present, *also_at])
    slack = SLACK.get(column.one.score, 0.0)
    asked = points - slack if column.is_lowest else points + slack
    return Curve(
        thresholds=points,
        share_kept=_num_inside(column.values[column.passes], asked, column.is_lowest) / len(column.values),
        share_inside=_num_inside(column.values, asked, column.is_lowest) / len(column.values),
    )


def _points(values: np.ndarray, also_at: Sequence[float]) -> np.ndarray:
    """Where to ask: half of the points evenly over the range, half evenly over the clips."""
    finite = values[np.isfinite(values)]
    shares = np.linspace(0, 1, NUM_POINTS // 2)
    evenly = np.linspace(finite.min(), finite.max(), NUM_POINTS // 2)
    return np.unique(np.concatenate([np.quantile(finite, shares), evenly, np.asarray(also_at, float)]))


def _num_inside(values: np.ndarray, points: np.ndarray, is_lowest: bool) -> np.ndarray:
    """(P,) how many values each threshold keeps; NaN is always kept."""
    ordered = np.sort(values[~np.isnan(values)])
    num_missing = len(values) - len(ordered)
    if is_lowest:
        return num_missing + len(ordered) - np.searchsorted(ordered, points, "left")
    return num_missing + np.searchsorted(ordered, points, "right")


@dataclass(frozen=True, kw_only=True)
class Around:
    """The clips nearest to a threshold, nearest first: (row of the clips table, value)."""

    inside: list[tuple[int, float]]
    outside: list[tuple[int, float]]


def around(column: Column, *, at: float | None = None, count: int = 4) -> Around:
    """The clips that a threshold decides: on both sides of it, those that everything else lets pass.

    Args:
        at: where to look; default: the present threshold. Without either there is nothing to see.
    """
    place = column.threshold if at is None else at
    if place is None:
        return Around(inside=[], outside=[])
    is_outside = column.is_outside(place)
    sides = []
    for side in (~is_outside, is_outside):
        rows = np.flatnonzero(side & column.passes & ~np.isnan(column.values))
        nearest = rows[np.argsort(np.abs(column.values[rows] - place), kind="stable")][:count]
        sides.append([(int(row), float(column.values[row])) for row in nearest])
    return Around(inside=sides[0], outside=sides[1])
