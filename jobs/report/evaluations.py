"""The report's section on how good trained models are: RUN/train/*/evaluation.json, read and never recomputed.

evaluations(run, media)      # [{"name": "main", "step": 800, "groups": [...], "sheet": link, "charts": [...]}]
"""

from __future__ import annotations

import json
from typing import Any

from jobs.report.charts import Series, line, number
from jobs.report.gallery import Media
from recaption.run_folder import RunFolder

MAX_TEXTS = 24
"""Prompts shown with what the captioner said of their samples."""


GROUPS = {
    "prompt_following": "Prompt following, read back by the captioner",
    "contrastive": "Contrastive score",
    "diversity": "Diversity",
    "frechet_distance": "Distance to real clips",
    "flow_loss": "Flow loss by bucket",
}


SHARES = ("prompt_following", "contrastive/best_match")
"""Measures that are shares; the others are scores, distances and losses."""


TELLING = ("prompt_following/main_object+colour", "prompt_following/all_fields", "contrastive/best_match")
"""Drawn over the steps where several were evaluated."""


def evaluations(run: RunFolder, media: Media) -> list[dict[str, Any]]:
    """One entry per training that was evaluated."""
    return [_evaluation(run, media, name) for name in run.list("train/*/evaluation.json")]


def _evaluation(run: RunFolder, media: Media, name: str) -> dict[str, Any]:
    found = json.loads(run.read_bytes(name))
    folder = name.rpartition("/")[0]
    sheet = f"{folder}/evaluation.png"
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, measure in found["measures"].items():
        groups.setdefault(key.partition("/")[0], []).append(_row(key, measure))
    return {
        "name": folder.partition("/")[2],
        "step": found["step"],
        "made_with": [
            ("read by", found["captioner"]),
            ("sampled at", found["size"]),
            ("steps", number(found["num_steps"])),
            ("guidance", number(found["guidance"])),
            ("prompts", number(len(found["prompts"]))),
            ("prompts from", found["settings"]["held_out"] or "the clips of this run"),
        ],
        "groups": [(title, groups[kind]) for kind, title in GROUPS.items() if kind in groups],
        "texts": list(zip(found["prompts"], found["said"]))[:MAX_TEXTS],
        "sheet": media.add(run.read_bytes(sheet), "png") if run.exists(sheet) else "",
        "charts": _curves(run, f"{folder}/evaluations.jsonl"),
    }


def _row(key: str, measure: dict[str, Any]) -> dict[str, Any]:
    def shown(value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.1%}" if key.startswith(SHARES) else f"{value:.4f}"

    return {
        "name": (key.partition("/")[2] or key).replace("_", " ").replace("+", " and "),
        "value": shown(measure["value"]),
        "chance": shown(measure["chance"]),
        "real": shown(measure["real"]),
        "count": f"{measure['num']:,} {measure['unit']}" if measure["num"] else "",
        "definition": measure["definition"],
        "note": measure["note"],
    }


def _curves(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """Charts over the evaluated steps; none for a single one."""
    lines = [json.loads(text) for text in run.read_bytes(name).decode().splitlines()] if run.exists(name) else []
    if len(lines) < 2:
        return []
    styles = ("accent", "second", "faint")
    series = [
        Series(
            key.partition("/")[2].replace("_", " ").replace("+", " and "),
            style,
            [float(one["step"]) for one in lines if key in one],
            [float(one[key]) for one in lines if key in one],
        )
        for key, style in zip(TELLING, styles)
        if any(key in one for one in lines)
    ]
    return [
        {
            "title": "Prompt following",
            "note": "by step",
            "svg": line(series, label="prompt following"),
            "legend": series,
        }
    ]
