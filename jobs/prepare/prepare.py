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
from jobs.recipe.input_plan import plan_inputs
from jobs.recipe.inputs_table import INPUTS, iter_parts
from jobs.recipe.part_names import part_name
from jobs.recipe.run_inputs import check_same_recipe, check_still_there, write_recipe
from jobs.recipe.settings import Recipe, stage_hashes
from recaption.errors import ErrorBudgetError, StorageError
from recaption.inputs.lists.columns import parse_columns
from recaption.inputs.paths import find_inputs
from recaption.ledger.ledger import build_ledger
from recaption.quality.model_scorers import unavailable_scorers
from recaption.quality.plugins import Plugin, check_plugin_thresholds, find_plugins, stored_scores
from recaption.run_folder import RunFolder
from recaption.video_io.process import start

WORKER_BYTES = 512 << 20
"""Of a worker and its decoder, beside the frames it keeps: 0.3 and 0.1 GB while 1080p is decoded."""
BUDGET_AFTER_INPUTS = 50
"""`max_failed_share` stops a run early only after so many inputs; the fraction of fewer inputs is too noisy."""


def prepare(
    videos: Sequence[str],
    out: str,
    recipe: Recipe,
    cluster: Cluster,
    *,
    columns: Sequence[str] = (),
    video_root: str = "",
    only: Collection[int] | None = None,
) -> dict[str, Any]:
    """Probe, cut and score all inputs that are not in the run folder yet.

    Args:
        videos: paths of inputs, in addition to those that the run folder lists already.
        columns: ROLE=COLUMN of lists, where names are not recognised (`lists.columns`).
        video_root: folder or URI in which relative names of lists are looked up first.
        only: parts that may be computed; default: all.

    Raises:
        UsageError: a path without files, a decoder that is not installed, or a folder of another recipe.
        ErrorBudgetError: more than `max_failed_share` of the inputs failed.
    """
    run = RunFolder(out)
    check_same_recipe(run, recipe)
    plugins = find_plugins(recipe.prepare.scores.plugins, recipe.prepare.scores.num_model_frames)
    if recipe.filters.plugin_names:
        check_plugin_thresholds(recipe.filters, [*stored_scores(run), *(c for one in plugins for c in one.columns)])
    if recipe.prepare.decode.backend != "av":
        start(recipe.prepare.decode.backend)  # the stages after this one need it
    write_recipe(run, recipe)
    stage_hash = stage_hashes(recipe)["prepare"]
    num_companions = _plan(run, recipe, videos, parse_columns(columns), video_root)
    parts, num_parts, absent_scores = _open_parts(run, recipe, stage_hash, plugins, only)
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
    _check_rows(run, [part["part"] for part in parts], num_parts)
    if recipe.prepare.duplicates.perceptual:
        find_perceptual(run, recipe.prepare.duplicates, progress=cluster.progress)
    summary = build_ledger(run, recipe.filters).summary()
    _check_error_budget(summary["videos"]["total"], summary["videos"]["failed"], recipe.prepare.max_failed_share)
    return {
        **summary,
        "computed_parts": len(parts),
        "skipped_parts": num_parts - len(parts),
        **({"left_out_files": num_companions} if num_companions else {}),
        "absent_scores": absent_scores,
        **({"warnings": [f"scorer {name} {why}" for name, why in plugin_failures.items()]} if plugin_failures else {}),
        "throughput": cluster.throughput(),
    }


def _plan(run: RunFolder, recipe: Recipe, videos: Sequence[str], columns: dict[str, str], video_root: str) -> int:
    """Bring the list of inputs up to date; returns the number of files that are left out."""
    if not videos:
        return 0
    with find_inputs(videos, columns=columns, video_root=video_root) as found:
        forget_refusals(run, found)
        follow_renames(run, found.uris)
        plan_inputs(run, found, recipe.prepare.part_size)
        return found.num_companions


def _open_parts(
    run: RunFolder, recipe: Recipe, stage_hash: str, plugins: Sequence[Plugin], only: Collection[int] | None
) -> tuple[list[dict[str, Any]], int, dict[str, str]]:
    """(parts that have to be computed, whole or some inputs of them; number of all; scores missing from others -> why)."""
    unavailable_here = unavailable_scorers(recipe.prepare.scores)
    parts: list[dict[str, Any]] = []
    num_parts = 0
    absent_scores: dict[str, str] = {}
    for number, inputs in iter_parts(run):
        num_parts += 1
        changes = find_changes(run, number, inputs, stage_hash)
        lacks_scores = changes is not None and not changes.absent_scores.keys() <= unavailable_here.keys()
        lacks_scores |= changes is not None and not has_scores_of(run, number, plugins)
        if changes is not None and changes.is_finished and not lacks_scores:
            absent_scores |= changes.absent_scores
        elif only is None or number in only:
            part: dict[str, Any] = {"part": number}
            if changes is not None and not lacks_scores:
                part |= {"changed": changes.uris, "relisted": changes.relisted}
            parts.append(part)
    return parts, num_parts, absent_scores


def _check_rows(run: RunFolder, computed: Collection[int], num_parts: int) -> None:
    """Every input of the parts that were computed has its row, and the list of inputs is still there.

    Raises:
        StorageError: rows are missing, because somebody removed the run folder or parts of it meanwhile.
    """
    check_still_there(run, [INPUTS, *(part_name("videos", number) for number in sorted(computed))], "prepare")
    wanted, num_listed = {*computed}, 0
    for number, inputs in iter_parts(run):
        num_listed += 1
        if number in wanted:
            rows = run.read_columns(part_name("videos", number), ["uri"])["uri"].to_pylist()
            if rows != [one["uri"] for one in inputs]:
                raise StorageError(f"{run.path(part_name('videos', number))} has not one row for each of its inputs")
    if num_listed != num_parts:
        raise StorageError(f"{run.path(INPUTS)} lists other inputs than were planned: was it changed meanwhile?")


def _check_error_budget(total: int, failed: int, max_failed_share: float) -> None:
    if total and failed / total > max_failed_share:
        raise ErrorBudgetError(
            f"{failed} of {total} inputs failed, more than max_failed_share = {max_failed_share:g} allows; "
            "the rows with their reasons are in the run folder"
        )
