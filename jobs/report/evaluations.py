"""Evaluations of trained models for the report page, read from RUN/train/*/evaluation.json.

evaluations(run, media)      # [{"name": "main", "step": 800, "groups": [...], "sheet": link, "charts": [...]}]
"""

from __future__ import annotations

import json
from typing import Any

from jobs.report.charts import Series, line, number
from jobs.report.gallery import Media
from recaption.run_folder import RunFolder

MAX_TEXTS = 24
"""Maximum number of prompts shown with the captions of their samples."""
GROUPS = {
    "prompt_following": "Prompt following, judged by the captioner",
    "contrastive": "Contrastive score",
    "diversity": "Diversity",
    "frechet_distance": "Distance to real clips",
    "flow_loss": "Flow loss by bucket",
}
FRACTION_MEASURES = ("prompt_following", "contrastive/best_match")
"""Prefixes of the measures that are fractions, shown as percentages."""
CURVE_MEASURES = ("prompt_following/main_object+colour", "prompt_following/all_fields", "contrastive/best_match")
"""Measures drawn as curves if several steps were evaluated."""


def evaluations(run: RunFolder, media: Media) -> list[dict[str, Any]]:
    """One entry per evaluated training run."""
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
        "settings": [
            ("judged by", found["captioner"]),
            ("sampled at", found["size"]),
            ("steps", number(found["num_steps"])),
            ("guidance", number(found["guidance"])),
            ("prompts", number(len(found["prompts"]))),
            ("prompts from", found["settings"]["held_out"] or "clips of this run"),
        ],
        "groups": [(title, groups[kind]) for kind, title in GROUPS.items() if kind in groups],
        "texts": list(zip(found["prompts"], found["sample_captions"]))[:MAX_TEXTS],
        "sheet": media.add(run.read_bytes(sheet), "png") if run.exists(sheet) else "",
        "charts": _curves(run, f"{folder}/evaluations.jsonl"),
    }


def _row(key: str, measure: dict[str, Any]) -> dict[str, Any]:
    def shown(value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.1%}" if key.startswith(FRACTION_MEASURES) else f"{value:.4f}"

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
    """Curves over the evaluated steps; [] for a single step."""
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
        for key, style in zip(CURVE_MEASURES, styles)
        if any(key in one for one in lines)
    ]
    return [
        {
            "title": "Prompt following",
            "note": "by step",
            "svg": line(series, label="prompt following"),
            "legend": [(one.label, one.style) for one in series],
        }
    ]
