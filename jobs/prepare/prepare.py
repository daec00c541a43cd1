"""`recaption prepare`: probes raw videos, finds shots, cuts and scores clips, finds duplicates (first stage).

Every input becomes one row of RUN/videos, readable or not; the clips of a readable video cover it without gaps or overlap,
so that seconds add up. A part is four files (previews, fingerprints, clips, videos); videos/part-*.parquet is written last
and commits the part. A part without a score whose scorer was unavailable is computed again once the scorer is installed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from jobs.cluster.cluster import Cluster
from jobs.prepare.duplicates import find_perceptual
from jobs.prepare.worker import PrepareWorker
from jobs.recipe.part_names import part_name
from jobs.recipe.run_inputs import check_same_recipe, plan_inputs, write_recipe
from jobs.recipe.settings import Recipe, stage_hashes
from recaption.errors import ErrorBudgetError
from recaption.inputs.paths import expand_paths
from recaption.ledger.ledger import build_ledger, read_clips
from recaption.quality.model_scorers import unavailable_scorers
from recaption.quality.plugins import Plugin, check_plugin_thresholds, find_plugins
from recaption.run_folder import RunFolder, recipe_hash

BUDGET_AFTER_INPUTS = 50
"""`max_failed_share` stops a run early only after so many inputs; the fraction of fewer inputs is too noisy."""


def prepare(
    videos: Sequence[str], out: str, recipe: Recipe, cluster: Cluster, *, only: Collection[int] | None = None
) -> dict[str, Any]:
    """Probe, cut and score all inputs that are not in the run folder yet.

    Args:
        videos: paths of inputs, in addition to those that the run folder lists already.
        only: parts that may be computed; default: all.

    Raises:
        UsageError: a path without files, or a folder of another recipe.
        ErrorBudgetError: more than `max_failed_share` of the inputs failed.
    """
    uris = expand_paths(videos) if videos else []
    run = RunFolder(out)
    check_same_recipe(run, recipe)
    run.remove_temporary_files()
    write_recipe(run, recipe)
    stage_hash = stage_hashes(recipe)["prepare"]
    unavailable_here = unavailable_scorers(recipe.prepare.scores)
    plugins = find_plugins(recipe.prepare.scores.plugins, recipe.prepare.scores.num_model_frames)
    planned = plan_inputs(run, uris, recipe.prepare.part_size)
    parts: list[dict[str, Any]] = []
    absent_scores: dict[str, str] = {}
    for part, part_uris in sorted(planned.items()):
        missing = _missing_scores_if_done(run, part, part_uris, stage_hash, plugins)
        if missing is not None and missing.keys() <= unavailable_here.keys():
            absent_scores |= missing
        elif only is None or part in only:
            parts.append({"part": part, "uris": part_uris, "inputs_hash": recipe_hash(part_uris)})
    settings = {"run_uri": run.uri, "settings": recipe.prepare, "stage_hash": stage_hash}
    num_done = num_failed = 0
    plugin_failures: dict[str, str] = {}
    for result in cluster.run_parts(PrepareWorker, settings, parts, title="prepare", unit="clips"):
        absent_scores |= result["absent_scores"]
        plugin_failures |= result["plugin_failures"]
        num_done, num_failed = num_done + result["videos"], num_failed + result["failed"]
        if num_done >= BUDGET_AFTER_INPUTS:
            _check_error_budget(num_done, num_failed, recipe.prepare.max_failed_share)
    if recipe.prepare.duplicates.perceptual:
        find_perceptual(run, recipe.prepare.duplicates, progress=cluster.progress)
    check_plugin_thresholds(recipe.filters, read_clips(run))
    summary = build_ledger(run, recipe.filters).summary()
    _check_error_budget(summary["videos"]["total"], summary["videos"]["failed"], recipe.prepare.max_failed_share)
    return {
        **summary,
        "computed_parts": len(parts),
        "skipped_parts": len(planned) - len(parts),
        "absent_scores": absent_scores,
        **({"warnings": [f"scorer {name} {why}" for name, why in plugin_failures.items()]} if plugin_failures else {}),
        "throughput": cluster.throughput(),
    }


def _missing_scores_if_done(
    run: RunFolder, part: int, uris: list[str], stage_hash: str, plugins: Sequence[Plugin]
) -> dict[str, str] | None:
    """Scores missing from a finished part, with the reasons; None if the part is not finished."""
    name = part_name("videos", part)
    if not run.exists(name):
        return None
    metadata = run.table_metadata(name)
    if metadata.get("recipe_hash") != stage_hash or metadata.get("inputs_hash") != recipe_hash(uris):
        return None
    for plugin in plugins:
        scores = part_name(f"scores/{plugin.name}", part)
        expected = {"recipe_hash": plugin.hash, "inputs_hash": metadata["inputs_hash"]}
        if not run.exists(scores) or not expected.items() <= run.table_metadata(scores).items():
            return None
    return dict(json.loads(metadata.get("absent_scores", "{}")))


def _check_error_budget(total: int, failed: int, max_failed_share: float) -> None:
    if total and failed / total > max_failed_share:
        raise ErrorBudgetError(
            f"{failed} of {total} inputs failed, more than max_failed_share = {max_failed_share:g} allows; "
            "the rows with their reasons are in the run folder"
        )
