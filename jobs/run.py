"""`recaption run`: all stages in order. Each stage reads its inputs from the run folder, so a killed run can continue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from jobs.caption.caption import caption
from jobs.caption.worker import check_specs
from jobs.cluster.cluster import Cluster
from jobs.encode.encode import encode
from jobs.plan import plan
from jobs.prepare.prepare import prepare
from jobs.recipe.settings import Recipe
from jobs.report.page import write_report
from jobs.sample.sample import sample_run
from jobs.shard import shard
from jobs.train.train import train_model
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger
from recaption.run_folder import RunFolder

CAPTION_SET = "main"
TRAINING = "main"
STAGES = ("prepare", "caption", "shard", "encode", "plan", "train", "sample")


def run(
    videos: Sequence[str],
    out: str,
    recipe: Recipe,
    cluster: Cluster,
    *,
    columns: Sequence[str] = (),
    video_root: str = "",
    stop_after: str | None = None,
) -> dict[str, Any]:
    """Run all stages: raw videos to a trained, sampled model and a report page.

    Args:
        columns: as `prepare`.
        video_root: as `prepare`.

    Raises:
        UsageError: as the stages, or an unknown `stop_after`.
    """
    if stop_after is not None and stop_after not in STAGES:
        raise UsageError(f"--stop-after {stop_after!r}: the stages are {', '.join(STAGES)}")
    if stop_after != "prepare":
        check_specs(recipe.caption)  # fail now rather than after hours of `prepare`
    folder = RunFolder(out)
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "prepare": lambda: prepare(videos, out, recipe, cluster, columns=columns, video_root=video_root),
        "caption": lambda: caption(folder, recipe, CAPTION_SET, cluster),
        "shard": lambda: shard(folder, recipe, CAPTION_SET, cluster),
        "encode": lambda: encode(folder, recipe, cluster),
        "plan": lambda: plan(recipe, run_uri=out),
        "train": lambda: train_model("dit", out, TRAINING, recipe, cluster, progress=cluster.progress),
        "sample": lambda: sample_run(folder, TRAINING, recipe, progress=cluster.progress),
    }
    summaries: dict[str, dict[str, Any]] = {}
    for name, stage in stages.items():
        started = time.perf_counter()
        summaries[name] = stage()
        _record_timing(folder, name, time.perf_counter() - started, summaries[name])
        if name == "shard" and not summaries[name]["samples"]:
            break  # nothing to train on: the report says why
        if name == stop_after:
            break
    report = write_report(folder, recipe.filters, recipe=recipe)
    ledger = build_ledger(folder, recipe.filters).summary()
    computed = {key: summaries["prepare"][key] for key in ("computed_parts", "skipped_parts")}
    sampled_videos = summaries.get("sample", {}).get("videos", [])
    return {**ledger, **computed, "stages": summaries, "samples": sampled_videos, "report": report}


def _record_timing(folder: RunFolder, stage: str, seconds: float, summary: dict[str, Any]) -> None:
    """Store the wall time of a stage in report/timings.json; a stage without computed parts keeps its old time.

    The throughput of its workers (jobs/cluster/throughput.py) is stored under "throughput".
    """
    if summary.get("computed_parts") == 0:
        return
    name = "report/timings.json"
    timings = json.loads(folder.read_bytes(name)) if folder.exists(name) else {}
    throughput = {**timings.pop("throughput", {}), stage: summary.get("throughput") or {}}
    timings |= {stage: round(seconds, 1), "throughput": {name: found for name, found in throughput.items() if found}}
    folder.write_bytes(name, json.dumps(timings, indent=1).encode())
