"""Rules about which samples are shown how often, how long and how completely: one grammar for all three.

    images=2                            every image twice an epoch
    17f-64x64-8fps=0.5                  each sample of this bucket in half of the epochs
    tokens>2048=0@epoch<3               nothing larger than 2,048 tokens in epochs 0, 1 and 2
    frames>5=0..1@epoch<4               long samples come in little by little over the first four epochs
    0.5                                 for all samples, in all epochs

A rule is [SAMPLES=]VALUE[@WHEN]. SAMPLES: `all`, `images` (one latent frame), `videos` (more), the name of a bucket, or
`tokens`, `frames`, `frame_tokens` (of the whole sample, in latent frames; frame_tokens are those of one frame of tokens,
which goes with the area) with <, <=, > or >= and a number. VALUE: a number, or A..B, which goes from A to B while the rule
holds. WHEN: `epoch<E`, `epoch>=E` or `A<=epoch<B`; epochs count from 0 and may have a fraction, see `epochs`.

Several rules may hold for a sample: their values are multiplied (of limits the smallest counts), so their order is of no
account, and a curriculum stands beside a mix without repeating it. Where none holds the value is 1 (no limit). In a
shell, < and > need quotes.
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


COMPARED = re.compile(rf"(tokens|frames|frame_tokens)(<=|>=|<|>)({NUMBER})")


WHEN = re.compile(rf"epoch<(?P<until>{NUMBER})|epoch>=(?P<since>{NUMBER})|(?P<start>{NUMBER})<=epoch<(?P<end>{NUMBER})")


VALUE = re.compile(rf"({NUMBER})(?:\.\.({NUMBER}))?")


EXAMPLE = "write [SAMPLES=]VALUE[@WHEN], such as images=2, 0.5 or 'tokens>2048=0@epoch<3' (in quotes)"


@dataclass(frozen=True)
class Value:
    """A number, or a way from one to another."""

    first: float
    last: float

    def at(self, share: float) -> float:
        """Args: share: how much of the rule's time is over."""
        return self.first + (self.last - self.first) * share if self.first != self.last else self.first


@dataclass(frozen=True)
class Rule:
    """One rule, read."""

    text: str
    samples: str
    value: str
    """As written; `number` has read it where it is one."""
    number: Value | None
    start: float = 0.0
    """Epoch from which it holds."""
    end: float = math.inf
    """Epoch from which it holds no more."""

    def holds(self, position: float) -> bool:
        """Args: position: in epochs since the start of training."""
        return self.start <= position < self.end

    def number_at(self, position: float) -> float:
        assert self.number is not None
        return self.number.at((position - self.start) / (self.end - self.start) if self.end < math.inf else 0.0)

    def matches(self, sizes: SampleSizes, at: np.ndarray) -> np.ndarray | None:
        """bool: which of the samples `at` these places it is about; None: all of them.

        Raises:
            UsageError: it asks for what is not known of the samples, or for a bucket without any.
        """
        if self.samples == "all":
            return None
        if self.samples in ("images", "videos"):
            is_image = sizes.frames(f"rule {self.text!r}")[at] == 1
            return is_image if self.samples == "images" else ~is_image
        compared = COMPARED.fullmatch(self.samples)
        if compared is None:
            return sizes.in_bucket(self.samples, at)
        name, sign, limit = compared.group(1), compared.group(2), float(compared.group(3))
        values = np.asarray(sizes.num_tokens[at])
        if name != "tokens":
            frames = sizes.frames(f"rule {self.text!r}")[at]
            values = frames if name == "frames" else values // (frames // sizes.patch_frames)
        return {"<": values < limit, "<=": values <= limit, ">": values > limit, ">=": values >= limit}[sign]


def parse_rule(text: str, *, other_values: re.Pattern[str] | None = None) -> Rule:
    """Read one rule.

    Args:
        other_values: what a value may be besides a number.

    Raises:
        UsageError: it says what is wrong and how a rule is written.
    """
    text = str(text).strip()  # a run.yaml holds 0.5 as a number
    before, at, when = text.partition("@")
    samples, _, value = before.rpartition("=")
    samples = samples or "all"
    start, end = _when(text, when) if at else (0.0, math.inf)
    if samples not in ("all", "images", "videos") and not COMPARED.fullmatch(samples):
        try:
            parse_bucket(samples)
        except UsageError:
            raise UsageError(f"rule {text!r}: {samples!r} names no samples; {EXAMPLE}") from None
    numbers = VALUE.fullmatch(value)
    if numbers is None:
        if other_values is None or not other_values.fullmatch(value):
            raise UsageError(f"rule {text!r}: {value!r} is not a value it can have; {EXAMPLE}")
        return Rule(text, samples, value, None, start, end)
    first = float(numbers.group(1))
    last = float(numbers.group(2)) if numbers.group(2) else first
    if first != last and end == math.inf:
        raise UsageError(f"rule {text!r}: {value} has to arrive some time; add @epoch<E")
    return Rule(text, samples, value, Value(first, last), start, end)


def _when(text: str, when: str) -> tuple[float, float]:
    found = WHEN.fullmatch(when)
    if found is None:
        raise UsageError(f"rule {text!r}: after @ stands epoch<E, epoch>=E or A<=epoch<B, not {when!r}")
    start = float(found["start"] or found["since"] or 0)
    end = float(found["end"] or found["until"] or math.inf)
    if end <= start:
        raise UsageError(f"rule {text!r} never holds")
    return start, end


def product(rules: Iterable[Rule], sizes: SampleSizes, at: np.ndarray, position: float) -> np.ndarray:
    """float64: for each of the samples `at` these places, all values that hold for it multiplied."""
    values = np.ones(len(at))
    for rule in rules:
        if rule.holds(position):
            matches = rule.matches(sizes, at)
            values[slice(None) if matches is None else matches] *= rule.number_at(position)
    return values
