"""Which kind of caption is spoken when: stages of a captioner's training, as text that fits on a command line.

    parse_stages(("0.4:short=1", "0.6:descriptive=8,short=1,fields=1"), num_batches=1000)
    [Stage(until=400, shares={"short": 1.0}), Stage(until=1000, shares={"descriptive": 0.8, "short": 0.1, ...})]

That is DALL-E 3's recipe: first short captions of the main subject, then descriptive ones. What is rare in a stage is
not forgotten in it. A kind is spoken behind its prefix (`prefix_of`), so that one model afterwards speaks any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recaption.captions.text import CAPTION_KINDS
from recaption.errors import UsageError

TWO_STAGES = ("0.4:short=1", "0.6:descriptive=8,short=1,fields=1")


DESCRIPTIVE_ONLY = ("1:descriptive=1",)


FIELDS = "fields"
"""In a stage: all kinds that name one field, in equal shares."""


_FIELD_KINDS = tuple(kind for kind in CAPTION_KINDS if kind not in ("descriptive", "short"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    until: int
    """Number of the first batch that is no longer in it. The last stage has no end."""
    shares: Mapping[str, float]
    """Kind -> share of the captions that are spoken; sums to 1."""


def prefix_of(kind: str) -> str:
    """What is said before a caption of this kind: "" for descriptive ones, else "short :", "main object :"."""
    return "" if kind == "descriptive" else kind.replace("_", " ") + " :"


def parse_stages(texts: Sequence[str], num_batches: int) -> list[Stage]:
    """Stages from `SHARE:KIND=WEIGHT,...`; shares are parts of the `num_batches` of the whole training.

    Raises:
        UsageError: not in that form, an unknown kind, or no stage that speaks `descriptive`.
    """
    parsed = [_parse(text) for text in texts or DESCRIPTIVE_ONLY]
    total = sum(share for share, _ in parsed)
    stages, so_far = [], 0.0
    for share, shares in parsed:
        so_far += share
        stages.append(Stage(until=round(num_batches * so_far / total), shares=shares))
    if not any("descriptive" in stage.shares for stage in stages):
        raise UsageError(f"no stage of {tuple(texts)} speaks descriptive captions, which every captioner must")
    return stages


def stage_at(stages: Sequence[Stage], batch: int) -> Stage:
    return next((stage for stage in stages if batch < stage.until), stages[-1])


def kinds_in(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Kinds that any of the stages speaks, in the order of `KINDS`."""
    return tuple(kind for kind in CAPTION_KINDS if any(kind in stage.shares for stage in stages))


def _parse(text: str) -> tuple[float, dict[str, float]]:
    share_text, _, weights_text = text.partition(":")
    weights: dict[str, float] = {}
    try:
        share = float(share_text)
        for part in weights_text.split(","):
            name, _, weight = part.strip().partition("=")
            names = _FIELD_KINDS if name == FIELDS else (name,)
            for kind in names:
                weights[kind] = weights.get(kind, 0.0) + float(weight) / len(names)
    except ValueError as error:
        raise UsageError(f"stage {text!r} is not of the form SHARE:KIND=WEIGHT,..., such as {TWO_STAGES[1]}") from error
    unknown = [kind for kind in weights if kind not in CAPTION_KINDS]
    if unknown:
        raise UsageError(
            f"stage {text!r}: there is no kind {unknown[0]!r}; there are {', '.join(CAPTION_KINDS)} and {FIELDS}"
        )
    if share <= 0 or min(weights.values()) < 0 or not sum(weights.values()):
        raise UsageError(f"stage {text!r}: its share and one weight must be above 0, and no weight below")
    total = sum(weights.values())
    return share, {kind: weight / total for kind, weight in weights.items() if weight}
