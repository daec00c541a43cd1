"""Scores that need a model: each asked for by name, each from a package or weights that may not be there.

    scorers = load_scorers(ScoreSettings(models=("nsfw", "ocr")))         once per worker
    scores = scorers.add(scores, detail.pixels_THWC)                      ClipScores with nsfw and text_area_ocr set
    scorers.absent                                                        {"ocr": "No module named 'rapidocr...': pip ..."}

A scorer that is absent leaves its columns None and says why; it never stands in as 0. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recaption.errors import UsageError
from recaption.records import ClipScores

if TYPE_CHECKING:
    from recaption.quality.scores import ScoreSettings


class AbsentError(Exception):
    """A scorer's package or weights are not on this machine; the message says which."""


class Scorer(Protocol):
    """One model. Made from `ScoreSettings`; raises `AbsentError` there where it cannot be had."""

    columns: tuple[str, ...]
    """Fields of `ClipScores` that it fills."""

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        """Values of `columns` for one clip, given some of its frames: uint8 RGB, short side up to 256 px, at least one."""
        ...


SCORERS = {
    "nsfw": "recaption.quality.nsfw:NsfwScorer",
    "ocr": "recaption.quality.ocr:OcrScorer",
    "aesthetic": "recaption.quality.aesthetic:AestheticScorer",
}


@dataclass(frozen=True)
class Scorers:
    """The scorers asked for that are here, and why the others are not."""

    loaded: Sequence[Scorer] = ()
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    max_frames: int = 8

    def add(self, scores: ClipScores, frames_THWC: np.ndarray) -> ClipScores:
        """The same scores with those of the models; unchanged for a clip without frames of this size."""
        if not len(frames_THWC) or not self.loaded:
            return scores
        places = np.linspace(0, len(frames_THWC) - 1, min(self.max_frames, len(frames_THWC))).round().astype(int)
        values: dict[str, Any] = {}
        for scorer in self.loaded:
            values |= scorer.score(frames_THWC[places])
        return dataclasses.replace(scores, **values)


def load_scorers(settings: ScoreSettings) -> Scorers:
    """All of `settings.models`, loaded or with the reason why not.

    Raises:
        UsageError: there is no scorer of that name.
    """
    loaded: list[Scorer] = []
    absent: dict[str, str] = {}
    for name in settings.models:
        try:
            loaded.append(_scorer_class(name)(settings))
        except AbsentError as reason:
            absent[name] = str(reason)
    return Scorers(loaded, absent, settings.model_frames)


def absent_scorers(settings: ScoreSettings) -> dict[str, str]:
    """Name -> reason of those of `settings.models` that cannot be had here; loads no weights.

    Raises:
        UsageError: there is no scorer of that name.
    """
    reasons = {name: _scorer_class(name).why_absent(settings) for name in settings.models}
    return {name: reason for name, reason in reasons.items() if reason}


def why_missing(module: str) -> str | None:
    """None where a package can be imported, else what is missing and what brings it."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f'{error}: pip install "recaption[scores]"'
    return None


def _scorer_class(name: str) -> Any:
    if name not in SCORERS:
        raise UsageError(f"there is no scorer {name!r}; there are: {', '.join(SCORERS)}")
    module, _, attribute = SCORERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
