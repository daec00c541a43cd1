"""Scores that need a model (`nsfw`, `ocr`, `aesthetic`), selected by name; their packages and weights are optional.

    scorers = load_scorers(ScoreSettings(models=("nsfw", "ocr")))         once per worker
    scores = scorers.add(scores, detail.pixels_THWC)                      ClipScores with nsfw and text_area_ocr set
    scorers.unavailable                                                   {"ocr": "No module named 'rapidocr...': pip ..."}

An unavailable scorer leaves its columns None, never 0, and gives the reason. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recaption.errors import UsageError
from recaption.quality.plugins import Plugin, find_plugins
from recaption.records import ClipScores

if TYPE_CHECKING:
    from recaption.quality.scores import ScoreSettings


class ScorerUnavailableError(Exception):
    """A scorer's package or weights are missing on this machine; the message says which."""


class Scorer(Protocol):
    """A model that scores clips. Constructed from `ScoreSettings`; raises `ScorerUnavailableError` if it is missing."""

    columns: tuple[str, ...]
    """Fields of `ClipScores` that this scorer fills."""

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        """Values of `columns` for one clip from at least one of its frames: uint8 RGB, short side up to 256 px."""
        ...


SCORERS = {
    "nsfw": "recaption.quality.nsfw:NsfwScorer",
    "ocr": "recaption.quality.ocr:OcrScorer",
    "aesthetic": "recaption.quality.aesthetic:AestheticScorer",
}


@dataclass(frozen=True)
class ModelScorers:
    """The requested scorers that could be loaded, and why the others are unavailable."""

    loaded: Sequence[Scorer] = ()
    unavailable: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a scorer -> reason."""
    max_frames: int = 8
    plugins: Sequence[Plugin] = ()
    """Own scorers, open; their scores are tables of their own."""

    def add(self, scores: ClipScores, frames_THWC: np.ndarray) -> ClipScores:
        """Return `scores` with the scores of the models filled in; unchanged where there are no frames."""
        if not len(frames_THWC) or not self.loaded:
            return scores
        frame_indices = np.linspace(0, len(frames_THWC) - 1, min(self.max_frames, len(frames_THWC))).round().astype(int)
        values: dict[str, Any] = {}
        for scorer in self.loaded:
            values |= scorer.score(frames_THWC[frame_indices])
        return dataclasses.replace(scores, **values)


def load_scorers(settings: ScoreSettings) -> ModelScorers:
    """Load all of `settings.models`, and own scorers; those of the models that are missing are listed with the reason.

    Raises:
        UsageError: unknown name of a scorer, or an own one that does not start.
    """
    loaded: list[Scorer] = []
    unavailable: dict[str, str] = {}
    for name in settings.models:
        try:
            loaded.append(_scorer_class(name)(settings))
        except ScorerUnavailableError as reason:
            unavailable[name] = str(reason)
    plugins = find_plugins(settings.plugins, settings.num_model_frames)
    for plugin in plugins:
        plugin.open()
    return ModelScorers(loaded, unavailable, settings.num_model_frames, plugins)


def unavailable_scorers(settings: ScoreSettings) -> dict[str, str]:
    """Name -> reason of those of `settings.models` that are unavailable on this machine; loads no weights.

    Raises:
        UsageError: unknown name of a scorer.
    """
    reasons = {name: _scorer_class(name).unavailable_reason(settings) for name in settings.models}
    return {name: reason for name, reason in reasons.items() if reason}


def missing_package_reason(module: str) -> str | None:
    """None if a package can be imported, else what is missing and how to install it."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f'{error}: pip install "recaption[scores]"'
    return None


def _scorer_class(name: str) -> Any:
    if name not in SCORERS:
        raise UsageError(f"unknown scorer {name!r}; available: {', '.join(SCORERS)}")
    module, _, attribute = SCORERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
