"""The packing plan in the report: packs of the first epoch, cost per step and rank, effect of rules, epochs."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from jobs.report.charts import Series, line, number, pack_columns

BY_RULE = {
    "left_out": "not in this epoch",
    "repeated": "repeated in this epoch",
    "cut": "cropped in time (max frames)",
    "split": "split into segments",
    "dropped": "with tokens dropped",
}


def plan_figures(plan: dict[str, Any] | None) -> dict[str, Any] | None:
    """Template variables of the packing section from plan.json; None without a plan."""
    if plan is None:
        return None
    named = [
        ("Fill", f"{plan['fill']:.1%}"),
        ("Packs", number(plan["num_packs"])),
        ("Samples", number(plan["num_samples"])),
        ("Steps per epoch", number(plan["num_steps"])),
        ("Rank efficiency", f"{plan['rank_efficiency']:.1%}"),
        ("Capacity", f"{number(plan['capacity'])} tokens" if plan.get("capacity") else "–"),
        ("Policy", str(plan["policy"]).replace("_", " ")),
    ]
    if "num_segments" in plan:
        named += [
            ("Segments", number(plan["num_segments"])),
            ("Tokens dropped", f"{plan['dropped_token_fraction']:.1%}"),
        ]
    columns = pack_columns(plan.get("pack_tokens", []), plan["capacity"]) if plan.get("capacity") else ""
    shown = len(plan.get("pack_tokens", []))
    return {
        "named": named,
        "columns": columns,
        "steps": _step_costs(plan),
        "rejected": _counted(plan, "rejected", {}),
        "by_rule": _counted(plan, "by_rule", BY_RULE),
        "epochs": plan.get("epochs", []),
        "num_shown": shown,
    }


def _step_costs(plan: dict[str, Any]) -> Markup | None:
    """Cost of the slowest rank and mean cost of all ranks per step; the difference is waiting time."""
    steps = plan.get("step_flops", [])
    if plan.get("num_ranks", 1) < 2 or len(steps) < 2:
        return None
    mean = sum(of_step[0] for of_step in steps) / len(steps)
    numbers = [float(number) for number in range(len(steps))]
    kinds = (("slowest rank", "accent", 1), ("mean of the ranks", "second", 0))
    return line(
        [Series(name, style, numbers, [of_step[column] / mean for of_step in steps]) for name, style, column in kinds],
        label="cost of each step, as a multiple of the mean",
    )


def _counted(plan: dict[str, Any], kind: str, labels: dict[str, str]) -> list[tuple[str, int, float | None]]:
    """(label, number of samples, their seconds if known)."""
    seconds = plan.get(f"{kind}_seconds", {})
    counts = plan.get(kind) or {}
    return [(labels.get(name, name.replace("_", " ")), count, seconds.get(name)) for name, count in counts.items()]
