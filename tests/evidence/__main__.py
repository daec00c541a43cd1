"""`python -m tests.evidence NAME`: run or go on with an experiment; `--list`, `--page`.

OMP_NUM_THREADS=1 nice -n 19 python -m tests.evidence backbones
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recaption.errors import RecaptionError
from tests.evidence.experiment import experiment_names, load_experiment
from tests.evidence.page import write_page
from tests.evidence.results import FOLDER
from tests.evidence.run import run_experiment

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help="experiments, one after the other")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "evidence", help="state (default: build/evidence)")
    parser.add_argument(
        "--results", type=Path, default=FOLDER, help="JSON and pictures (default: tests/evidence/results)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    parser.add_argument("--list", action="store_true", help="experiments, and what they wait for")
    parser.add_argument("--page", action="store_true", help="write docs/evidence.md from the results")
    arguments = parser.parse_args()
    if arguments.list or not (arguments.name or arguments.page):
        for name in experiment_names():
            print(_about(name))
        return 0
    is_published = arguments.results == FOLDER
    try:
        for name in arguments.name:
            run_experiment(
                load_experiment(name),
                out=arguments.out,
                results=arguments.results,
                seeds=arguments.seeds or (),
                on_results=write_page if is_published else lambda: None,
            )
    except RecaptionError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.page:
        write_page()
    return 0


def _about(name: str) -> str:
    experiment = load_experiment(name)
    ready = [arm.name for arm in experiment.runnable()]
    lines = [f"{name}: {experiment.question}"]
    lines += [f"  ready: {', '.join(ready)}; {len(experiment.seeds)} seeds, {experiment.steps} steps"] if ready else []
    lines += [f"  {arm} waits for {sentence}" for arm, sentence in experiment.missing().items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
