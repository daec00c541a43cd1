"""docs/evidence.md, made from the JSON files of the results: claims, intervals, verdicts, costs, commands, pictures.

python -m tests.evidence --page        # after a result came in, or an experiment was added
"""

from __future__ import annotations

import math
from pathlib import Path

from tests.evidence.experiment import (
    MIN_CPU_MINUTES,
    MIN_FOLLOWED,
    MIN_PROMPTS,
    MIN_SEEDS,
    experiment_names,
    load_experiment,
)
from tests.evidence.results import EQUAL_CPU, EQUAL_STEPS, FOLDER, FOLLOWS, JudgedClaim, Results, result_paths
from tests.evidence.world import HELD_OUT_SIZE

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
HEAD = f"""<!-- made by `python -m tests.evidence --page` from tests/evidence/results/*.json -->
# Evidence

Claims of the papers behind this project, tested by training both sides on a CPU, in a small world of rendered scenes.
What is found here is an order (this is better than that, at this size), never the size of a published gap.

## How to run

    make evidence NAME=backbones                       # or: OMP_NUM_THREADS=1 python -m tests.evidence backbones
    python -m tests.evidence --list                    # experiments, and what they wait for
    python -m tests.evidence backbones --out FOLDER    # state elsewhere than build/evidence
    python -m tests.evidence backbones --seeds 1       # one seed: several processes can share an experiment

One thread; killed at any moment, the same command goes on where it was (the trainings' own checkpoints, about 100 MB of
state for each arm and seed). Trainings take turns: every arm of a seed before the next seed. After each, the JSON file,
the plot and the contact sheet in `tests/evidence/results/` and this page are written anew. An experiment is a file of some
30 lines in `tests/evidence/experiments/`: arms (settings of `recaption train dit`, or a function that trains), readings,
claims.

## Rules

- **World**: one large object of 9 shapes and 9 colours on 3 grounds moves left, moves right or stays still; 5 frames of
  64 px unless an experiment says otherwise. A third of all (object, colour, ground) triples is never trained on, and
  prompts are about those.
- **Arms** differ in what they are named after; data, its order, noise, seeds, steps and learning rate are the same (that
  of the DiT: an arm that would do better with another one is at a disadvantage). The loss is that of
  held-out clips at fixed noise, against steps and against CPU time (of the training thread, measured; no validation).
- **{MIN_PROMPTS} prompts**, the same prompts and the same noise in all arms. A prompt is *followed* where the `tiny`
  captioner reads its object and its colour back from the sample (chance below 4 %).
- **{MIN_SEEDS} seeds** (weights, data order, noise). Fewer: unfinished, and no verdict.
- **Intervals**: 95 % of the paired difference, prompts and seeds both random (two-way analysis of variance, Student's t;
  [statistics.py](../tests/evidence/statistics.py) says why not a bootstrap over three seeds).
- **Verdicts**: a claim *holds* where the whole interval is on its side, *does not hold* where it is on the other, and
  *cannot be told* otherwise. A comparison counts only where each arm had {MIN_CPU_MINUTES:g} CPU-minutes of training and
  the better one follows {MIN_FOLLOWED:.0%} of the prompts: models that have not learned yet are not compared. What failed
  is shown like what held.
"""
TABLE_HEAD = """| claim | arms | result | verdict |
| --- | --- | --- | --- |"""


def page_text(folder: Path = FOLDER) -> str:
    """The page for the results in `folder`."""
    found = [Results.load(path) for path in result_paths(folder)]
    shown = [results for results in found if not results.data["is_micro"]]
    parts = [HEAD, "## Results\n"]
    if shown:
        parts.append("\n".join(_summary(shown)) + "\n")
    else:
        parts.append("None yet.\n")
    parts += [_section(results, folder) for results in shown]
    open_ones = [name for name in experiment_names() if name not in {results.name for results in shown}]
    if open_ones:
        lines = [f"- `{name}`: {load_experiment(name).question}" for name in open_ones]
        parts.append("## Declared, without a result yet\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def write_page(path: Path = PAGE, folder: Path = FOLDER) -> None:
    path.write_text(page_text(folder), encoding="utf-8")


def _summary(shown: list[Results]) -> list[str]:
    lines = ["| experiment | claim | difference | verdict | CPU-hours |", "| --- | --- | --- | --- | --- |"]
    for results in shown:
        for number, judged in enumerate(results.judged_claims()):
            name = f"[{results.name}](#{results.name})" if not number else ""
            cost = f"{results.cpu_minutes() / 60:.1f}" if not number else ""
            lines.append(f"| {name} | {judged.claim.text} | {_difference(judged)} | {_emphasised(judged)} | {cost} |")
    return lines


def _section(results: Results, folder: Path) -> str:
    lines = [f"## {results.name}", "", f"{results.data['question']} ({results.data['source']})", "", TABLE_HEAD]
    for judged in results.judged_claims():
        claim = judged.claim
        lines.append(
            f"| {claim.text} | `{claim.better}` against `{claim.worse}` | {_values(judged)} | {_emphasised(judged)} |"
        )
    lines += ["", *_arms(results), "", _cost(results), ""]
    relative = f"../tests/evidence/results/{results.name}"
    for suffix, about in (
        (".png", "curves and readings"),
        ("-samples.png", "the same prompts over the arms, first seed"),
    ):
        if (folder / f"{results.name}{suffix}").exists():
            lines += [f"![{results.name}: {about}]({relative}{suffix})", ""]
    return "\n".join(lines)


def _arms(results: Results) -> list[str]:
    """A row per arm: what it is, weights, minutes, and the main readings over its seeds."""
    columns = [FOLLOWS, "action", "loss", HELD_OUT_SIZE + FOLLOWS, HELD_OUT_SIZE + "loss", "frechet_distance"]
    columns = [name for name in columns if any(results.mean(arm, name) is not None for arm in results.finished_arms)]
    head = ["arm", "weights", "seeds", "CPU-min each", *(name.replace("_", " ") for name in columns)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for arm, settings in results.data["arms"].items():
        runs = results.runs.get(arm, {})
        about = f"`{arm}`" + (f": {settings['about']}" if settings.get("about") else "")
        if not runs:
            waits = results.data["waiting"].get(arm)
            lines.append(f"| {about} | {'waits for ' + waits if waits else 'not run yet'} |" + " |" * (len(head) - 2))
            continue
        one = next(iter(runs.values()))
        minutes = sum(run["cpu_minutes"] for run in runs.values()) / len(runs)
        values = [results.mean(arm, name) for name in columns]
        cells = [about, f"{one['num_parameters'] / 1e6:.2f} M", str(len(runs)), f"{minutes:.1f}"]
        cells += ["" if value is None else _number(value, name) for value, name in zip(values, columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cost(results: Results) -> str:
    chances = [
        run["readings"][FOLLOWS].get("chance")
        for seeds in results.runs.values()
        for run in seeds.values()
        if FOLLOWS in run["readings"]
    ]
    known = [chance for chance in chances if chance is not None]
    chance = f" Chance level of following: {max(known):.1%}." if known else ""
    versions = ", ".join(f"{name} {version}" for name, version in results.data["versions"].items())
    return (
        f"Cost: {results.cpu_minutes():.0f} CPU-minutes with rendering and reading.{chance} `make evidence "
        f"NAME={results.name}`; {versions}."
    )


def _values(judged: JudgedClaim) -> str:
    if judged.difference is None or judged.values is None:
        return ""
    one, other = (_number(value, judged.claim.reading) for value in judged.values)
    return f"{_reading(judged)} {one} against {other}: better by {_difference(judged)}"


def _reading(judged: JudgedClaim) -> str:
    name = judged.claim.reading
    for suffix in (EQUAL_STEPS, EQUAL_CPU):
        name = name.replace(suffix, suffix.replace("_", " ").replace("cpu", "CPU"))
    return name.replace("_", " ")


def _difference(judged: JudgedClaim) -> str:
    found = judged.difference
    if found is None:
        return ""
    if not math.isfinite(found.low):
        return _number(found.mean, judged.claim.reading)
    mean, low, high = (_number(value, judged.claim.reading) for value in (found.mean, found.low, found.high))
    margin = f" (asked: above {_number(judged.claim.margin, judged.claim.reading)})" if judged.claim.margin else ""
    return f"{mean} [{low}, {high}]{margin}"


def _emphasised(judged: JudgedClaim) -> str:
    is_verdict = ":" not in judged.verdict and not judged.verdict.startswith("waits")
    return f"**{judged.verdict}**" if is_verdict else judged.verdict


def _number(value: float, reading: str) -> str:
    """Percent for fractions of prompts, three digits for anything else."""
    fractions = (FOLLOWS, "follows_all", "object", "colour", "action", "ground")
    if reading.removeprefix(HELD_OUT_SIZE) in fractions:
        return f"{value:.1%}"
    return f"{value:.3g}"
