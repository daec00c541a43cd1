"""The grammar of mixture rules: sampling weights, limits of frames and token keep rates, by sample and by epoch.

    images=2                            every image twice an epoch
    17f-64x64-8fps=0.5                  each sample of this bucket in half of the epochs
    tokens>2048=0@epoch<3               nothing larger than 2,048 tokens in epochs 0, 1 and 2
    frames>5=0..1@epoch<4               the weight of long samples rises linearly from 0 to 1 over the first four epochs
    0.5                                 for all samples, in all epochs

A rule is [SAMPLES=]VALUE[@WHEN]. SAMPLES: `all`, `images` (one latent frame), `videos` (more), the name of a bucket, or
`tokens`, `frames`, `frame_tokens` (of the whole sample, in latent frames; frame_tokens are those of one frame of tokens,
proportional to the area) with <, <=, > or >= and a number. VALUE: a number, or A..B, a linear ramp from A to B over WHEN.
WHEN: `epoch<E`, `epoch>=E` or `A<=epoch<B`; epochs count from 0 and may have a fraction, see `packing.plan.epochs`.

Where several rules apply to a sample, their values are multiplied (of limits the smallest is taken), so their order does
not matter, and a curriculum combines with weights per bucket. Where none applies the value is 1 (no limit). In a shell,
< and > need quotes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from packing.buckets import parse_bucket
from packing.mixture.sample_sizes import SampleSizes
from recaption.errors import UsageError

NUMBER = r"\d+(?:\.\d+)?"
SIZE_CONDITION = re.compile(rf"(tokens|frames|frame_tokens)(<=|>=|<|>)({NUMBER})")
EPOCH_RANGE = re.compile(
    rf"epoch<(?P<until>{NUMBER})|epoch>=(?P<since>{NUMBER})|(?P<start>{NUMBER})<=epoch<(?P<end>{NUMBER})"
)
VALUE = re.compile(rf"({NUMBER})(?:\.\.({NUMBER}))?")
SYNTAX_HINT = "write [SAMPLES=]VALUE[@WHEN], such as images=2, 0.5 or 'tokens>2048=0@epoch<3' (in quotes)"


@dataclass(frozen=True)
class LinearSchedule:
    """A linear ramp from `first` to `last`; a constant where they are equal."""

    first: float
    last: float

    def at(self, fraction: float) -> float:
        """Args: fraction: of the rule's epochs that are over, 0..1."""
        return self.first + (self.last - self.first) * fraction if self.first != self.last else self.first


@dataclass(frozen=True)
class Rule:
    """One parsed rule."""

    text: str
    samples: str
    """`all`, `images`, `videos`, a bucket's name or a size condition."""
    value: str
    """As written."""
    schedule: LinearSchedule | None
    """`value` parsed; None where it is no number but one of `other_values`."""
    start: float = 0.0
    """First epoch in which it is active."""
    end: float = math.inf
    """Exclusive."""

    def is_active(self, position_epochs: float) -> bool:
        """Args: position_epochs: epochs since the start of training, with a fraction."""
        return self.start <= position_epochs < self.end

    def value_at(self, position_epochs: float) -> float:
        assert self.schedule is not None
        is_endless = self.end == math.inf
        return self.schedule.at(0.0 if is_endless else (position_epochs - self.start) / (self.end - self.start))

    def matches(self, sizes: SampleSizes, sample_indices: np.ndarray) -> np.ndarray | None:
        """bool: which of these samples it applies to; None: all of them.

        Raises:
            UsageError: the condition needs a field that `sizes` lacks, or names a bucket without samples.
        """
        if self.samples == "all":
            return None
        if self.samples in ("images", "videos"):
            is_image = sizes.require_num_frames(f"rule {self.text!r}")[sample_indices] == 1
            return is_image if self.samples == "images" else ~is_image
        condition = SIZE_CONDITION.fullmatch(self.samples)
        if condition is None:
            return sizes.in_bucket(self.samples, sample_indices)
        name, sign, limit = condition.group(1), condition.group(2), float(condition.group(3))
        values = np.asarray(sizes.num_tokens[sample_indices])
        if name != "tokens":
            frames = sizes.require_num_frames(f"rule {self.text!r}")[sample_indices]
            values = frames if name == "frames" else values // (frames // sizes.patch_frames)
        return {"<": values < limit, "<=": values <= limit, ">": values > limit, ">=": values >= limit}[sign]


def parse_rule(text: str, *, other_values: re.Pattern[str] | None = None) -> Rule:
    """Parse one rule.

    Args:
        other_values: pattern of values that are allowed besides numbers.

    Raises:
        UsageError: malformed; the message shows the syntax.
    """
    text = str(text).strip()  # a run.yaml holds 0.5 as a number
    before, separator, when = text.partition("@")
    samples, _, value = before.rpartition("=")
    samples = samples or "all"
    start, end = _parse_epoch_range(text, when) if separator else (0.0, math.inf)
    if samples not in ("all", "images", "videos") and not SIZE_CONDITION.fullmatch(samples):
        try:
            parse_bucket(samples)
        except UsageError:
            raise UsageError(f"rule {text!r}: {samples!r} selects no samples; {SYNTAX_HINT}") from None
    numbers = VALUE.fullmatch(value)
    if numbers is None:
        if other_values is None or not other_values.fullmatch(value):
            raise UsageError(f"rule {text!r}: {value!r} is not a valid value; {SYNTAX_HINT}")
        return Rule(text, samples, value, None, start, end)
    first = float(numbers.group(1))
    last = float(numbers.group(2)) if numbers.group(2) else first
    if first != last and end == math.inf:
        raise UsageError(f"rule {text!r}: the ramp {value} needs an end; add @epoch<E")
    return Rule(text, samples, value, LinearSchedule(first, last), start, end)


def _parse_epoch_range(text: str, when: str) -> tuple[float, float]:
    found = EPOCH_RANGE.fullmatch(when)
    if found is None:
        raise UsageError(f"rule {text!r}: after @ write epoch<E, epoch>=E or A<=epoch<B, not {when!r}")
    start = float(found["start"] or found["since"] or 0)
    end = float(found["end"] or found["until"] or math.inf)
    if end <= start:
        raise UsageError(f"rule {text!r} is never active")
    return start, end


def product_of_rules(
    rules: Iterable[Rule], sizes: SampleSizes, sample_indices: np.ndarray, position_epochs: float
) -> np.ndarray:
    """float64: for each of these samples, the product of the values of all active rules that match it."""
    values = np.ones(len(sample_indices))
    for rule in rules:
        if rule.is_active(position_epochs):
            matches = rule.matches(sizes, sample_indices)
            values[slice(None) if matches is None else matches] *= rule.value_at(position_epochs)
    return values
