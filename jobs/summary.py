"""Prints the summary of a command, and computes its exit code."""

from __future__ import annotations

import sys
from typing import Any

MAX_FAILURES_SHOWN = 20


def exit_code(verb: str, summary: dict[str, Any]) -> int:
    """0 all good, 1 finished but some inputs failed, 3 `verify` found damage."""
    if verb == "verify":
        return 0 if summary["ok"] else 3
    return 1 if summary.get("failures") or summary.get("videos_failed") else 0


def print_summary(verb: str, summary: dict[str, Any]) -> None:
    """Print a summary on stdout: counts, then warnings, failures and problems."""
    if "waterfall" in summary:  # of `prepare --what-if`, which is a table
        from jobs.report import what_if

        print(what_if.as_text(summary), flush=True)
        return
    for key, value in summary.items():
        if key in ("failures", "problems", "stages", "refused", "warnings", "compared", "epochs"):
            continue
        print(f"{key.replace('_', ' ')}: {_readable(value)}")
    if "compared" in summary:  # of `plan --compare`
        from jobs.plan import as_text

        print(as_text(summary["compared"]))
    if "epochs" in summary:  # of `plan --epochs`
        from jobs.plan import epochs_as_text

        print(epochs_as_text(summary["epochs"]))
    for name, stage in summary.get("stages", {}).items():
        print(f"{name}:")
        for key, value in stage.items():
            if key not in ("failures", "problems", "warnings"):
                print(f"  {key.replace('_', ' ')}: {_readable(value)}")
    warnings = [
        *summary.get("warnings", []),
        *(w for s in summary.get("stages", {}).values() for w in s.get("warnings", [])),
    ]
    for warning in warnings:
        print(f"WARNING: {warning}")
    _print_rows("failures", [f"{row['uri']}: {row['reason']}" for row in summary.get("failures", [])])
    _print_rows("problems", [f"{p['kind']}: {p['where']}: {p['detail']}" for p in summary.get("problems", [])])
    _print_rows("not repaired", [f"{where}: {why}" for where, why in summary.get("refused", {}).items()])
    sys.stdout.flush()


def _readable(value: Any, name: str = "") -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_readable(v, k)}" for k, v in value.items()) or "none"
    if name.endswith("_bytes"):
        return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.2f} MB"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _print_rows(title: str, rows: list[str]) -> None:
    if not rows:
        return
    print(f"{title}:")
    for row in rows[:MAX_FAILURES_SHOWN]:
        print(f"  {row}")
    if len(rows) > MAX_FAILURES_SHOWN:
        print(f"  ... and {len(rows) - MAX_FAILURES_SHOWN} more; --json lists them all")
