"""`recaption prepare`: probes raw videos, finds shots, cuts and scores clips, finds duplicates (first stage).

Every input becomes one row of RUN/videos, readable or not; the clips of a readable video cover it without gaps or overlap,
so that seconds add up. A part is four files (previews, fingerprints, clips, videos); videos/part-*.parquet is written last
and commits the part. A part without a score whose scorer was unavailable is computed again once the scorer is installed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from jobs.cluster.cluster import Cluster
from jobs.prepare.changes import find_changes, forget_refusals
from jobs.prepare.copies import choose_names, follow_renames
from jobs.prepare.duplicates import find_perceptual
from jobs.prepare.plugin_scores import has_scores_of
from jobs.prepare.worker import PrepareWorker
from jobs.recipe.part_names import part_name
from jobs.recipe.run_inputs import (
    INPUTS,
    check_same_recipe,
    check_still_there,
    parts_of,
    plan_inputs,
    read_inputs,
    write_recipe,
)
from jobs.recipe.settings import Recipe, stage_hashes
from recaption.errors import ErrorBudgetError, StorageError
from recaption.inputs.paths import FoundInputs, find_inputs
from recaption.ledger.ledger import build_ledger
from recaption.quality.model_scorers import unavailable_scorers
from recaption.quality.plugins import Plugin, check_plugin_thresholds, find_plugins, stored_scores
from recaption.run_folder import RunFolder, recipe_hash

WORKER_BYTES = 512 << 20
"""Of a worker and its decoder, beside the frames it keeps: 0.3 and 0.1 GB while 1080p is decoded."""
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
    found = find_inputs(videos) if videos else FoundInputs()
    run = RunFolder(out)
    check_same_recipe(run, recipe)
    plugins = find_plugins(recipe.prepare.scores.plugins, recipe.prepare.scores.num_model_frames)
    if recipe.filters.plugin_names:
        check_plugin_thresholds(recipe.filters, [*stored_scores(run), *(c for one in plugins for c in one.columns)])
    write_recipe(run, recipe)
    stage_hash = stage_hashes(recipe)["prepare"]
    if videos:
        forget_refusals(run, found.all_names())
        follow_renames(run, found.uris)
    planned = plan_inputs(run, found.all_names(), recipe.prepare.part_size, found.refused)
    parts, absent_scores = _open_parts(run, recipe, planned, stage_hash, plugins, only)
    settings = {"run_uri": run.uri, "settings": recipe.prepare, "stage_hash": stage_hash}
    memory_bytes = WORKER_BYTES + recipe.prepare.decode.max_kept_bytes
    num_done = num_failed = 0
    plugin_failures: dict[str, str] = {}
    for result in cluster.run_parts(
        PrepareWorker, settings, parts, title="prepare", unit="clips", memory_bytes=memory_bytes
    ):
        absent_scores |= result["absent_scores"]
        plugin_failures |= result["plugin_failures"]
        num_done, num_failed = num_done + result["videos"], num_failed + result["failed"]
        if num_done >= BUDGET_AFTER_INPUTS:
            _check_error_budget(num_done, num_failed, recipe.prepare.max_failed_share)
    if only is None:
        check_still_there(run, [INPUTS], "prepare")
        choose_names(run)
    _check_rows(run, planned, [part["part"] for part in parts])
    if recipe.prepare.duplicates.perceptual:
        find_perceptual(run, recipe.prepare.duplicates, progress=cluster.progress)
    summary = build_ledger(run, recipe.filters).summary()
    _check_error_budget(summary["videos"]["total"], summary["videos"]["failed"], recipe.prepare.max_failed_share)
    return {
        **summary,
        "computed_parts": len(parts),
        "skipped_parts": len(planned) - len(parts),
        **({"left_out_files": found.num_companions} if found.companions else {}),
        "absent_scores": absent_scores,
        **({"warnings": [f"scorer {name} {why}" for name, why in plugin_failures.items()]} if plugin_failures else {}),
        "throughput": cluster.throughput(),
    }


def _open_parts(
    run: RunFolder,
    recipe: Recipe,
    planned: dict[int, list[str]],
    stage_hash: str,
    plugins: Sequence[Plugin],
    only: Collection[int] | None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(parts that have to be computed, whole or some inputs of them; scores missing from the others -> why)."""
    refused = {row["uri"]: row["refusal"] for row in read_inputs(run) if row["refusal"]}
    unavailable_here = unavailable_scorers(recipe.prepare.scores)
    parts: list[dict[str, Any]] = []
    absent_scores: dict[str, str] = {}
    for number, uris in sorted(planned.items()):
        changes = find_changes(run, number, uris, stage_hash)
        lacks_scores = changes is not None and not changes.absent_scores.keys() <= unavailable_here.keys()
        lacks_scores |= changes is not None and not has_scores_of(run, number, plugins)
        if changes is not None and changes.is_finished and not lacks_scores:
            absent_scores |= changes.absent_scores
        elif only is None or number in only:
            part = {"part": number, "uris": uris, "inputs_hash": recipe_hash(uris)}
            part["refused"] = {uri: refused[uri] for uri in uris if uri in refused}
            if changes is not None and not lacks_scores:
                part["changed"] = changes.uris
            parts.append(part)
    return parts, absent_scores


def _check_rows(run: RunFolder, planned: dict[int, list[str]], computed: Collection[int]) -> None:
    """Every input of the parts that were computed has its row, and the list of inputs is still there.

    Raises:
        StorageError: rows are missing, because somebody removed the run folder or parts of it meanwhile.
    """
    check_still_there(run, [INPUTS, *(part_name("videos", number) for number in sorted(computed))], "prepare")
    listed = parts_of(read_inputs(run))
    for number in sorted(computed):
        rows = run.read_columns(part_name("videos", number), ["uri"])["uri"].to_pylist()
        if rows != listed.get(number):
            raise StorageError(f"{run.path(part_name('videos', number))} has not one row for each of its inputs")
    if sorted(map(len, listed.values())) != sorted(map(len, planned.values())):
        raise StorageError(f"{run.path(INPUTS)} lists other inputs than were planned: was it changed meanwhile?")


def _check_error_budget(total: int, failed: int, max_failed_share: float) -> None:
    if total and failed / total > max_failed_share:
        raise ErrorBudgetError(
            f"{failed} of {total} inputs failed, more than max_failed_share = {max_failed_share:g} allows; "
            "the rows with their reasons are in the run folder"
        )
