"""Curriculum of caption kinds: training stages, parsed from command-line strings.

    parse_stages(("0.4:short=1", "0.6:descriptive=8,short=1,fields=1"), num_batches=1000)
    [Stage(end_batch=400, kind_weights={"short": 1.0}), Stage(end_batch=1000, kind_weights={"descriptive": 0.8, ...})]

This is DALL-E 3's recipe: first short captions of the main subject, then descriptive ones, with a few of the other kinds
so that they are not forgotten. Each kind has its own prompt prefix (`prefix_of`), so that one model can generate any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recaption.captions.text import CAPTION_KINDS
from recaption.errors import UsageError

TWO_STAGES = ("0.4:short=1", "0.6:descriptive=8,short=1,fields=1")
DESCRIPTIVE_ONLY = ("1:descriptive=1",)
FIELDS = "fields"
"""In a stage: all single-field kinds, with equal weights."""
_FIELD_KINDS = tuple(kind for kind in CAPTION_KINDS if kind not in ("descriptive", "short"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Caption kinds sampled up to batch `end_batch`."""

    end_batch: int
    """First batch after the stage; ignored for the last stage, which has no end."""
    kind_weights: Mapping[str, float]
    """Kind -> probability; sums to 1."""


def prefix_of(kind: str) -> str:
    """Prompt prefix of a caption kind: "" for descriptive, else "short :", "main object :", ..."""
    return "" if kind == "descriptive" else kind.replace("_", " ") + " :"


def parse_stages(texts: Sequence[str], num_batches: int) -> list[Stage]:
    """Parse stages `FRACTION:KIND=WEIGHT,...`; fractions are relative to the `num_batches` of the whole training.

    Raises:
        UsageError: invalid syntax, an unknown kind, or no stage with `descriptive`.
    """
    parsed = [_parse(text) for text in texts or DESCRIPTIVE_ONLY]
    total = sum(fraction for fraction, _ in parsed)
    stages, end = [], 0.0
    for fraction, kind_weights in parsed:
        end += fraction
        stages.append(Stage(end_batch=round(num_batches * end / total), kind_weights=kind_weights))
    if not any("descriptive" in stage.kind_weights for stage in stages):
        raise UsageError(f"no stage of {tuple(texts)} has descriptive captions, which every captioner must learn")
    return stages


def stage_at(stages: Sequence[Stage], batch: int) -> Stage:
    """The stage of batch number `batch`."""
    return next((stage for stage in stages if batch < stage.end_batch), stages[-1])


def kinds_in(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Kinds of any stage, in the order of `KINDS`."""
    return tuple(kind for kind in CAPTION_KINDS if any(kind in stage.kind_weights for stage in stages))


def _parse(text: str) -> tuple[float, dict[str, float]]:
    """(fraction, kind -> weight, normalised)."""
    fraction_text, _, weights_text = text.partition(":")
    weights: dict[str, float] = {}
    try:
        fraction = float(fraction_text)
        for part in weights_text.split(","):
            name, _, weight = part.strip().partition("=")
            names = _FIELD_KINDS if name == FIELDS else (name,)
            for kind in names:
                weights[kind] = weights.get(kind, 0.0) + float(weight) / len(names)
    except ValueError as error:
        raise UsageError(
            f"stage {text!r} is not of the form FRACTION:KIND=WEIGHT,..., such as {TWO_STAGES[1]}"
        ) from error
    unknown = [kind for kind in weights if kind not in CAPTION_KINDS]
    if unknown:
        raise UsageError(
            f"stage {text!r}: unknown kind {unknown[0]!r}; choose from {', '.join(CAPTION_KINDS)} and {FIELDS}"
        )
    if fraction <= 0 or min(weights.values()) < 0 or not sum(weights.values()):
        raise UsageError(f"stage {text!r}: its fraction and one weight must be above 0, and no weight below 0")
    total = sum(weights.values())
    return fraction, {kind: weight / total for kind, weight in weights.items() if weight}
