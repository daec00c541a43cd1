"""`recaption verify`: the ledger adds up, the shards are whole, the captions belong to their clips."""

from __future__ import annotations

from typing import Any

from jobs.recipes import Recipe
from recaption.ledger import account, verify
from recaption.run_folder import RunFolder


def verify_run(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Problems found, and the sums that were checked."""
    problems = verify(run, recipe.filters)
    sums = account(run, recipe.filters).summary()
    return {
        "ok": not problems,
        "videos": sums["videos"],
        "clips": sums["clips"],
        "seconds": sums["seconds"],
        "problems": [{"kind": p.kind, "where": p.where, "detail": p.detail} for p in problems],
    }
