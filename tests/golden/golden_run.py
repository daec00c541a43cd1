"""What the quickstart makes of the demo's videos, as one JSON file: did a change of the code change what comes out?

    python tests/golden/golden_run.py WORK --write tests/golden/demo.json     # at the commit before
    python tests/golden/golden_run.py WORK --compare tests/golden/demo.json   # at the commit after; exit 1: they differ

WORK keeps the videos; the run folder in it is made anew. Clip ids, scores, frames, caption texts, tar members, latents and
the order of packs are compared to the letter; losses to a relative 1e-6, as last bits depend on the machine's kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd

NUM_LOSSES = 50
LOSS_TOLERANCE = 1e-6
LATENTS = "patch-24-w0.5"
CAPACITY = 1024


def make_run(work: Path) -> Path:
    """The chain up to the plan, then `NUM_LOSSES` steps of training."""
    videos, run = work / "videos", work / "run"
    shutil.rmtree(run, ignore_errors=True)
    _python("jobs.demo_videos", str(videos))
    _python("jobs", "run", "--videos", str(videos), "--out", str(run), "--recipe", "quickstart", "--stop-after", "plan")
    settings = ["--train-dit.trainer.log-every", "1", "--train-dit.trainer.checkpoint-every", str(NUM_LOSSES)]
    _python("jobs", "train", "dit", "--run", str(run), "--name", "golden", "--steps", str(NUM_LOSSES), *settings)
    return run


def _python(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 1):  # 1: finished, some inputs failed
        raise SystemExit(f"python -m {module} {' '.join(arguments)} ended with {done.returncode}")


def golden_of(run: Path) -> dict[str, Any]:
    """Everything that a refactoring must leave as it is."""
    clips = _table(run, "clips/part-*.parquet").sort_values("clip_id")
    captions = _table(run, "captions/main/part-*.parquet").sort_values(["clip_id", "source", "kind", "window"])
    return {
        "clips": clips.clip_id.tolist(),
        "scores": {
            name: _sha256(clips[name].to_numpy("float64").tobytes()) for name in clips.select_dtypes("number").columns
        },
        "frames": dict(zip(captions.clip_id, captions.clip_sha256)),
        "captions": [[row.clip_id, row.source, row.text] for row in captions.itertuples()],
        "clip_scores": [None if math.isnan(score) else round(score, 5) for score in captions.clip_score],
        "shards": _tar_members(run / "shards"),
        "latents": _tar_members(run / "latents"),
        "packs": _packs(run),
        "losses": [row["loss"] for row in _log(run / "train/golden/metrics.jsonl") if "loss" in row][:NUM_LOSSES],
    }


def _table(run: Path, pattern: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(run.glob(pattern))], ignore_index=True)


def _tar_members(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[f"{path.relative_to(folder)}/{member.name}"] = _sha256(content.read())
    return found


def _packs(run: Path) -> list[list[str]]:
    from packing.grid import Grid
    from packing.loader.loader import PackLoader
    from packing.plan.settings import PlanSettings
    from recaption.run_folder import RunFolder

    settings = PlanSettings(capacity=CAPACITY)
    loader = PackLoader(
        RunFolder(str(run)), latents=LATENTS, grid=Grid(patch=(1, 2, 2)), settings=settings, rank=0, num_ranks=1
    )
    batches = iter(loader)
    return [list(next(batches).clip_ids) for _ in range(60)]  # more than two epochs


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line per part that differs."""
    lines = []
    for name in before:
        old, new = before[name], after.get(name)
        if name == "losses" and len(old) == len(new or []):
            worst = max(abs(a - b) / abs(a) for a, b in zip(old, new or []))
            if worst > LOSS_TOLERANCE:
                lines.append(f"losses: differ by up to {worst:.2e} of their size")
        elif old != new:
            places = old if isinstance(old, dict) else range(max(len(old), len(new or [])))
            changed = [place for place in places if _at(old, place) != _at(new, place)]
            lines.append(f"{name}: {len(changed)} of {len(old)} differ, the first at {changed[:1]}")
    return lines


def _at(values: Any, place: Any) -> Any:
    try:
        return values[place]
    except (IndexError, KeyError, TypeError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compare", type=Path)
    arguments = parser.parse_args()
    golden = golden_of(make_run(arguments.work))
    if arguments.write:
        arguments.write.write_text(json.dumps(golden, indent=1) + "\n")
    if arguments.compare:
        found = differences(json.loads(arguments.compare.read_text()), golden)
        print("\n".join(found) or f"nothing differs from {arguments.compare}")
        return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
