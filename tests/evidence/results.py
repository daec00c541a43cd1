"""Results of an experiment as JSON: settings, costs, thinned curves and every value that was read; and what they amount to.

    results = Results.load("tests/evidence/results/backbones.json")
    for judged in results.judged_claims():
        judged.verdict, judged.difference.low, judged.difference.high

`holds`, `does not hold` and `cannot be told` are said only of experiments that count: every arm of the claim finished with
three seeds, 12 CPU-minutes each, and the best of them follows half of 300 prompts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.evidence.experiment import (
    MIN_CPU_MINUTES,
    MIN_FOLLOWED,
    MIN_PROMPTS,
    MIN_SEEDS,
    Claim,
)
from tests.evidence.readings import Series
from tests.evidence.statistics import Difference, paired_difference, verdict

FOLDER = Path(__file__).parent / "results"
FOLLOWS = "follows"
EQUAL_STEPS, EQUAL_CPU = "_at_equal_steps", "_at_equal_cpu"
"""Suffixes of readings taken from the curves: at the last common step, and when the faster arm of a claim has ended. The
learning rate of the slower arm has not come down by then.

CPU time here is that of undisturbed steps (the 10th percentile of the seconds a step takes, over the points of all curves of
an arm) times their number: other work on the machine makes the same step take up to twice the CPU time."""
UNDISTURBED = 0.1
SIGNIFICANT_DIGITS = 5
CURVE_POINTS = 40
COUNTS = ""


@dataclass(frozen=True, kw_only=True)
class JudgedClaim:
    """A claim with its result."""

    claim: Claim
    verdict: str
    """Of statistics.py, or why there is none: `unfinished: ...`, `does not count: ...`."""
    difference: Difference | None
    """Of the seeds that both arms have; None where there are none."""
    values: tuple[float, float] | None = None
    """Means of the two arms."""


class Results:
    """The parsed JSON file of one experiment."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.runs: dict[str, dict[str, Any]] = data["runs"]

    @classmethod
    def load(cls, path: str | Path) -> Results:
        return cls(json.loads(Path(path).read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(_text(self.data), encoding="utf-8")
        partial.replace(path)

    @property
    def name(self) -> str:
        return str(self.data["name"])

    @property
    def claims(self) -> list[Claim]:
        return [Claim(**claim) for claim in self.data["claims"]]

    @property
    def finished_arms(self) -> list[str]:
        """Arms with at least one finished seed, in their order."""
        return [name for name in self.data["arms"] if self.runs.get(name)]

    def cpu_minutes(self) -> float:
        """All trainings, readings and the rendering; an arm that others start from is counted once."""
        total = float(self.data["world_cpu_seconds"])
        for seeds in self.runs.values():
            for run in seeds.values():
                total += sum(run["phases_cpu_seconds"].values())
        return total / 60

    # --- values -------------------------------------------------------------------------------------------------------

    def series(self, arm: str, seed: str, reading: str) -> np.ndarray | None:
        """The values of a reading, (units,); None where it was not read."""
        found = self.runs[arm][seed]["readings"].get(reading)
        if found is None:
            return None
        return np.array([int(bit) for bit in found["bits"]] if "bits" in found else found["values"], np.float64)

    def mean(self, arm: str, reading: str) -> float | None:
        """Over units and finished seeds."""
        values = [self.series(arm, seed, reading) for seed in self.runs.get(arm, {})]
        return float(np.mean([x.mean() for x in values if x is not None])) if values and values[0] is not None else None

    def seconds_per_step(self, arm: str) -> float:
        """CPU seconds of a step of an arm while little else ran."""
        curves = [run["curve"] for run in self.runs[arm].values()]
        steps = np.concatenate([np.diff([0, *curve["step"]]) for curve in curves])
        seconds = np.concatenate([np.diff([0, *curve["cpu_seconds"]]) for curve in curves])
        return float(np.quantile(seconds / steps, UNDISTURBED))

    def higher_is_better(self, reading: str) -> bool:
        for seeds in self.runs.values():
            for run in seeds.values():
                if reading in run["readings"]:
                    return bool(run["readings"][reading]["higher_is_better"])
        return False

    def paired(self, claim: Claim) -> tuple[np.ndarray, np.ndarray] | None:
        """(seeds, units) of the better and the worse arm, on the seeds that both have."""
        one, other = self.runs.get(claim.better, {}), self.runs.get(claim.worse, {})
        pairs = [self._pair(claim, seed) for seed in sorted(one.keys() & other.keys(), key=int)]
        present = [(x, y) for x, y in pairs if x is not None and y is not None]
        if not present:
            return None
        return np.stack([x for x, _ in present]), np.stack([y for _, y in present])

    def _pair(self, claim: Claim, seed: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        arms = (claim.better, claim.worse)
        for suffix in (EQUAL_STEPS, EQUAL_CPU):
            if claim.reading.endswith(suffix):
                curves = [self.runs[arm][seed]["curve"] for arm in arms]
                name = claim.reading.removesuffix(suffix)
                if any(name not in curve for curve in curves):
                    return None, None
                scales = [self.seconds_per_step(arm) if suffix == EQUAL_CPU else 1.0 for arm in arms]
                end = min(scale * curve["step"][-1] for scale, curve in zip(scales, curves))
                one, other = (
                    np.array([np.interp(end / scale, curve["step"], curve[name])])
                    for scale, curve in zip(scales, curves)
                )
                return one, other
        return self.series(claim.better, seed, claim.reading), self.series(claim.worse, seed, claim.reading)

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def judged_claims(self) -> list[JudgedClaim]:
        return [self.judge(claim) for claim in self.claims]

    def judge(self, claim: Claim) -> JudgedClaim:
        """The paired difference, positive where `better` is better, and what may be said of it."""
        pairs = self.paired(claim)
        if pairs is None:
            return JudgedClaim(claim=claim, verdict=self._not_started(claim), difference=None)
        sign = 1 if self.higher_is_better(claim.reading) else -1
        difference = paired_difference(sign * pairs[0], sign * pairs[1])
        objection = self._objection(claim, difference.num_seeds)
        return JudgedClaim(
            claim=claim,
            verdict=objection or verdict(difference, margin=claim.margin),
            difference=difference,
            values=(float(pairs[0].mean()), float(pairs[1].mean())),
        )

    def _not_started(self, claim: Claim) -> str:
        waiting: Mapping[str, str] = self.data["waiting"]
        for arm in (claim.better, claim.worse):
            if arm in waiting:
                return f"waits for {waiting[arm]}"
        return f"unfinished: 0 of {MIN_SEEDS} seeds"

    def _objection(self, claim: Claim, num_seeds: int) -> str:
        """Why there is no verdict; empty where the comparison counts."""
        if num_seeds < MIN_SEEDS:
            return f"unfinished: {num_seeds} of {MIN_SEEDS} seeds"
        if self.data["is_micro"]:
            return "does not count: a test of the harness"
        arms = (claim.better, claim.worse)
        minutes = min(run["cpu_minutes"] for arm in arms for run in self.runs[arm].values())
        if minutes < MIN_CPU_MINUTES:
            return f"does not count: an arm has {minutes:.1f} CPU-minutes, {MIN_CPU_MINUTES:g} are the least"
        return self._objection_to_prompts(arms)

    def _objection_to_prompts(self, arms: Sequence[str]) -> str:
        """Models that follow too few prompts are not compared. Experiments without prompts have no such rule."""
        followed = {arm: self.mean(arm, FOLLOWS) for arm in arms}
        known = [value for value in followed.values() if value is not None]
        if not known:
            return COUNTS
        num_prompts = min(
            len(found)
            for arm in arms
            for seed in self.runs[arm]
            if (found := self.series(arm, seed, FOLLOWS)) is not None
        )
        if num_prompts < MIN_PROMPTS:
            return f"does not count: {num_prompts} prompts, {MIN_PROMPTS} are the least"
        if max(known) < MIN_FOLLOWED:
            return f"does not count: the best arm follows {max(known):.0%} of the prompts, {MIN_FOLLOWED:.0%} are the least"
        return COUNTS


def series_as_json(series: Series) -> dict[str, Any]:
    """Bits as a string of 0 and 1, other values with five digits."""
    found: dict[str, Any] = {"unit": series.unit, "higher_is_better": series.higher_is_better}
    if series.chance is not None:
        found["chance"] = _rounded(series.chance)
    if series.is_bits:
        return found | {"bits": "".join(str(int(value)) for value in series.values)}
    return found | {"values": [_rounded(value) for value in series.values]}


def thinned(curve: Mapping[str, Sequence[float]], points: int = CURVE_POINTS) -> dict[str, list[float]]:
    """At most `points` of a curve, its ends among them."""
    number = len(next(iter(curve.values()), ()))
    chosen = np.unique(np.linspace(0, max(number - 1, 0), min(points, number)).round().astype(int))
    return {name: [_rounded(values[index]) for index in chosen] for name, values in curve.items()}


def claims_as_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(claim) for claim in claims]


def result_paths(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _text(data: Mapping[str, Any]) -> str:
    """JSON with one line per arm and seed."""
    arms = []
    for arm, seeds in data["runs"].items():
        lines = [f'   "{seed}": {json.dumps(run, ensure_ascii=False)}' for seed, run in seeds.items()]
        arms.append(f"  {json.dumps(arm)}: {{\n" + ",\n".join(lines) + "\n  }")
    head = json.dumps({key: value for key, value in data.items() if key != "runs"}, indent=1, ensure_ascii=False)
    runs = "{\n" + ",\n".join(arms) + "\n }" if arms else "{}"
    return f'{head[:-2]},\n "runs": {runs}\n}}\n'


def _rounded(value: float) -> float:
    return int(value) if float(value).is_integer() else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
