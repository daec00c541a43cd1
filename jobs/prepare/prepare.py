"""`recaption prepare`: raw videos -> RUN/videos, RUN/clips, RUN/fingerprints, RUN/previews. The first stretch of the river.

Every input becomes one row of videos/, readable or not; the clips of a readable one tile it, so that seconds add up.
A part is four files; videos/part-*.parquet is written last and says that the part is complete. A part that lacks a score
because its scorer was absent is made again once the scorer is there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from jobs.cluster.cluster import Cluster
from jobs.prepare.duplicates import find_perceptual
from jobs.prepare.worker import PrepareWorker
from jobs.recipe.run_inputs import check_same_recipe, part_name, plan_inputs, write_recipe
from jobs.recipe.settings import Recipe, stage_hashes
from recaption.errors import ErrorBudgetError
from recaption.inputs.paths import expand_paths
from recaption.ledger.ledger import build_ledger
from recaption.quality.model_scorers import unavailable_scorers
from recaption.run_folder import RunFolder, recipe_hash

BUDGET_AFTER_INPUTS = 50
"""From so many inputs on `max_failed_share` ends a run before its end; of fewer the share says little."""


def prepare(
    videos: Sequence[str], out: str, recipe: Recipe, cluster: Cluster, *, only: Collection[int] | None = None
) -> dict[str, Any]:
    """Probe, cut and score all inputs that are not yet in the run folder.

    Args:
        videos: paths to look for inputs in; those that the run folder lists already come without being named.
        only: parts that may be computed; default: all.

    Raises:
        UsageError: a path leads nowhere, or the folder belongs to another recipe.
        ErrorBudgetError: more than `max_failed_share` of the inputs failed.
    """
    uris = expand_paths(videos) if videos else []
    run = RunFolder(out)
    check_same_recipe(run, recipe)
    run.remove_temporary_files()
    write_recipe(run, recipe)
    stage_hash = stage_hashes(recipe)["prepare"]
    absent_here = unavailable_scorers(recipe.prepare.scores)
    planned = plan_inputs(run, uris, recipe.prepare.part_size)
    parts: list[dict[str, Any]] = []
    absent_scores: dict[str, str] = {}
    for part, members in sorted(planned.items()):
        absent = _absent_if_done(run, part, members, stage_hash)
        if absent is not None and absent.keys() <= absent_here.keys():
            absent_scores |= absent
        elif only is None or part in only:
            parts.append({"part": part, "uris": members, "inputs_hash": recipe_hash(members)})
    settings = {"run_uri": run.uri, "settings": recipe.prepare, "stage_hash": stage_hash}
    seen = failed = 0
    for done in cluster.run_parts(PrepareWorker, settings, parts, title="prepare", unit="clips"):
        absent_scores |= done["absent_scores"]
        seen, failed = seen + done["videos"], failed + done["failed"]
        if seen >= BUDGET_AFTER_INPUTS:
            _check_error_budget(seen, failed, recipe.prepare.max_failed_share)
    if recipe.prepare.duplicates.perceptual:
        find_perceptual(run, recipe.prepare.duplicates, progress=cluster.progress)
    summary = build_ledger(run, recipe.filters).summary()
    _check_error_budget(summary["videos"]["total"], summary["videos"]["failed"], recipe.prepare.max_failed_share)
    return {
        **summary,
        "computed_parts": len(parts),
        "skipped_parts": len(planned) - len(parts),
        "absent_scores": absent_scores,
        "throughput": cluster.throughput(),
    }


def _absent_if_done(run: RunFolder, part: int, uris: list[str], stage_hash: str) -> dict[str, str] | None:
    """The scores that a finished part lacks, with the reasons; None for a part that is not finished."""
    name = part_name("videos", part)
    if not run.exists(name):
        return None
    metadata = run.table_metadata(name)
    if metadata.get("recipe_hash") != stage_hash or metadata.get("inputs_hash") != recipe_hash(uris):
        return None
    return dict(json.loads(metadata.get("absent_scores", "{}")))


def _check_error_budget(total: int, failed: int, max_failed_share: float) -> None:
    if total and failed / total > max_failed_share:
        raise ErrorBudgetError(
            f"{failed} of {total} inputs failed, more than max_failed_share = {max_failed_share:g} allows; "
            "the rows with their reasons are in the run folder"
        )
