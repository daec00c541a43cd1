"""Own scorers as plug-ins: packages with an entry point in the group `recaption.scorers`, selected by its name.

    [project.entry-points."recaption.scorers"]                # in the pyproject.toml of the package
    brightness = "brightness_scorer:Brightness"

    plugins = find_plugins(("brightness",))                   # UsageError if it is not installed; loads no weights
    plugins[0].open()                                         # in the worker
    plugins[0].score(clip_id, frames_THWC)                    # {"clip_id": ..., "brightness": 0.43}

Scores of a plug-in are a table of their own, RUN/scores/<plug-in>/part-*.parquet, beside the parts of clips. Joined with
clips, a score is the column `plugin.<score>`, which filters, what-if and report treat like those of `ClipScores`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recaption.errors import UsageError
from recaption.quality.filters import PLUGIN_PREFIX, FilterThresholds
from recaption.records import Clip, ClipScores
from recaption.run_folder import RunFolder, recipe_hash

GROUP = "recaption.scorers"
SCORE_PARTS = "scores/*/part-*.parquet"
"""Their metadata has the `recipe_hash` of the plug-in (`Plugin.hash`) and the `bytes_hash` of the part of clips."""
NAME = re.compile(r"[a-z][a-z0-9_]*")


class PluginScorer(Protocol):
    """The class that an entry point of `recaption.scorers` names; constructed without arguments, once per worker."""

    columns: tuple[str, ...]
    """Names of its scores: small letters, digits and _; none that recaption or another plug-in has."""
    version: str
    """Where it changes, clips are scored again. Optional, default ""."""

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        """Values of `columns` for one clip; None = no score, which drops nothing.

        Args:
            frames_THWC: at least one frame, at most `prepare.scores.num_model_frames`, spread evenly over the clip: uint8
                RGB, short side up to 256 px.
        """
        ...


@dataclass
class Plugin:
    """A scorer, and what it could not score."""

    name: str
    factory: Callable[[], PluginScorer]
    columns: tuple[str, ...]
    hash: str
    """Changes with the version of the scorer, its columns and the number of frames."""
    max_frames: int
    scorer: PluginScorer | None = None
    num_failed: int = 0
    """Clips on which it raised an exception: they have no score."""
    first_error: str = ""

    @property
    def schema(self) -> pa.Schema:
        """Columns of its table."""
        return pa.schema([("clip_id", pa.string()), *((name, pa.float64()) for name in self.columns)])

    def open(self) -> None:
        """Construct the scorer.

        Raises:
            UsageError: its constructor failed.
        """
        try:
            self.scorer = self.factory()
        except Exception as error:
            raise UsageError(f"the scorer plug-in {self.name!r} does not start: {_sentence(error)}") from error

    def score(self, clip_id: str, frames_THWC: np.ndarray) -> dict[str, Any]:
        """One row of its table; None for every score if there are no frames, or the plug-in fails on them."""
        row: dict[str, Any] = {"clip_id": clip_id, **dict.fromkeys(self.columns)}
        assert self.scorer is not None, "not opened"
        if not len(frames_THWC):
            return row
        chosen = np.linspace(0, len(frames_THWC) - 1, min(self.max_frames, len(frames_THWC))).round().astype(int)
        try:
            values = self.scorer.score(frames_THWC[chosen])
            scores = {name: _number(values.get(name)) for name in self.columns}
        except Exception as error:  # foreign code: what it raises is a missing score, counted and shown
            self.num_failed += 1
            self.first_error = self.first_error or _sentence(error)
            return row
        return row | scores

    @property
    def failures(self) -> str:
        """On how many clips it failed, and why; "" if on none."""
        return f"failed on {self.num_failed} clips, first with {self.first_error}" if self.num_failed else ""


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _number(value: Any) -> float | None:
    """A finite float; None for None and NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def installed(group: str = GROUP) -> dict[str, importlib.metadata.EntryPoint]:
    """Name -> entry point of the installed plug-ins."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def find_plugins(names: Sequence[str], num_frames: int = 8) -> list[Plugin]:
    """The scorers of these names, not opened yet.

    Args:
        num_frames: most frames of a clip that they get.

    Raises:
        UsageError: one is not installed, cannot be imported, or has names of scores that are taken.
    """
    available = installed() if names else {}
    plugins: list[Plugin] = []
    taken = {*Clip.__dataclass_fields__, *ClipScores.__dataclass_fields__, "verdict", "seconds"}
    for name in names:
        if name not in available:
            known = ", ".join(sorted(available)) or "none"
            raise UsageError(f"no scorer plug-in {name!r} is installed (installed: {known}; see docs/plugins.md)")
        try:
            factory = available[name].load()
            columns = tuple(factory.columns)
        except Exception as error:
            raise UsageError(f"the scorer plug-in {name!r} cannot be imported: {_sentence(error)}") from error
        for column in columns:
            if not NAME.fullmatch(column) or column in taken:
                why = "is taken" if column in taken else "has other characters than a-z, 0-9 and _"
                raise UsageError(f"the scorer plug-in {name!r} names a score {column!r}, which {why}")
        taken |= {*columns}
        key = recipe_hash([name, str(getattr(factory, "version", "")), columns, num_frames])
        plugins.append(Plugin(name, factory, columns, key, num_frames))
    return plugins


def add_plugin_scores(clips: pa.Table, parts: Iterable[pa.Table]) -> pa.Table:
    """Clips with a column `plugin.<score>` for each score in these tables, null where there is none."""
    by_columns: dict[tuple[str, ...], list[pa.Table]] = {}
    for part in parts:
        by_columns.setdefault(tuple(part.column_names), []).append(part)
    ids = clips["clip_id"].combine_chunks()
    for columns, tables in by_columns.items():
        scores = pa.concat_tables(tables)
        position = pc.index_in(ids, value_set=scores["clip_id"].combine_chunks())
        for name in columns:
            if name != "clip_id" and PLUGIN_PREFIX + name not in clips.column_names:
                values = scores[name].combine_chunks().take(position).cast(pa.float64())
                clips = clips.append_column(PLUGIN_PREFIX + name, values)
    return clips


def read_plugin_scores(run: RunFolder) -> list[pa.Table]:
    """The tables of all plug-ins of a run."""
    return [run.read_table(name) for name in run.list(SCORE_PARTS)]


def stored_scores(run: RunFolder) -> list[str]:
    """Names of the scores in the tables of plug-ins; damaged ones have none."""
    names: set[str] = set()
    for part in run.list(SCORE_PARTS):
        with contextlib.suppress(pa.ArrowException):
            names |= {*run.read_table(part).column_names}
    return sorted(names - {"clip_id"})


def check_plugin_thresholds(thresholds: FilterThresholds, there: Collection[str]) -> None:
    """Raise UsageError for a threshold on a score that no plug-in computes: it would drop nothing, silently."""
    for name in thresholds.plugin_names:
        if name[4:] not in there:
            known = ", ".join(there) or "none"
            raise UsageError(
                f"filters.{name[:4]}plugin_scores names {name[4:]!r}, which no plug-in computed here (computed: {known})"
            )
