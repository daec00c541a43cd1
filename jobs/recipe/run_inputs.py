"""Inputs of the stages in a run folder: run.yaml, the states of the sources, and the kept clips."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Mapping

import pyarrow as pa

from jobs.recipe.part_names import part_number
from jobs.recipe.settings import Recipe, from_dict, stage_hashes, to_dict
from recaption.dedup.near_duplicates import read_pairs
from recaption.errors import RecipeMismatchError, StorageError, UsageError, VideoError
from recaption.inputs.open_input import InputState, local_state, open_input
from recaption.ledger.ledger import CLIPS_SCHEMA, with_decisions
from recaption.quality.filters import drop_reasons, plugin_scores
from recaption.quality.plugins import check_plugin_thresholds
from recaption.records import Clip, from_table
from recaption.run_folder import RunFolder

RUN_YAML = "run.yaml"
VERSIONED = (
    "recaption",
    "torch",
    "open_clip_torch",
    "transformers",
    "av",
    "decord2",
    "torchcodec",
    "webdataset",
    "ray",
    "pyarrow",
)


def open_run(uri: str) -> tuple[RunFolder, Recipe]:
    """An existing run folder and its recipe.

    Raises:
        UsageError: not a run folder.
    """
    run = RunFolder(uri)
    if not run.exists(RUN_YAML):
        raise UsageError(
            f"{uri} is not a run folder: it has no {RUN_YAML} (make one with `recaption prepare --out {uri}`)"
        )
    return run, from_dict(run.read_yaml(RUN_YAML)["recipe"])


def write_recipe(run: RunFolder, recipe: Recipe) -> None:
    """Write run.yaml with the resolved recipe, its hashes and the package versions, if it changed."""
    document = {
        "recipe": to_dict(recipe),
        "hashes": stage_hashes(recipe),
        "versions": {name: _version(name) for name in VERSIONED},
    }
    if not run.exists(RUN_YAML) or run.read_yaml(RUN_YAML) != document:
        run.write_yaml(RUN_YAML, document)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_same_recipe(run: RunFolder, recipe: Recipe, stage: str = "prepare") -> None:
    """Raise if the run folder was prepared with other settings: one folder never mixes clips of two recipes.

    Raises:
        RecipeMismatchError: the folder's `stage` outputs were computed with other settings.
    """
    if not run.exists(RUN_YAML):
        return
    document = run.read_yaml(RUN_YAML)
    before, now = document["hashes"][stage], stage_hashes(recipe)[stage]
    if before != now:
        recipe_name = document["recipe"]["name"]
        raise RecipeMismatchError(
            f"{run.uri} was prepared by recipe {recipe_name!r} with other {stage} settings (hash {before}, now {now}): "
            f"use another --out, or --recipe {run.path(RUN_YAML)}"
        )


def check_still_there(run: RunFolder, names: Iterable[str], stage: str) -> None:
    """At the end of a stage: the files that it wrote exist.

    Raises:
        StorageError: one is gone, because somebody removed the run folder or parts of it meanwhile.
    """
    lost = [name for name in (RUN_YAML, *names) if not run.exists(name)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise StorageError(
            f"{run.path(lost[0])}{more} vanished while `{stage}` ran: was the run folder removed? Run it again"
        )


def source_states(run: RunFolder, video_ids: Mapping[str, str]) -> dict[str, InputState]:
    """Uri -> what `prepare` recorded of it: what later stages have to find there.

    Args:
        video_ids: uri -> video_id of each; all that is known of one whose row in RUN/videos is lost.
    """
    wanted = video_ids.keys()
    names = ["uri", "status", *InputState.__dataclass_fields__]
    states = {uri: InputState(video_id=video_id) for uri, video_id in video_ids.items()}
    for name in run.list("videos/part-*.parquet") if wanted else ():
        for row in run.read_columns(name, names).to_pylist():
            if row.pop("status") == "ok" and (uri := row.pop("uri")) in wanted:
                states[uri] = InputState(**row)
    return states


def videos_with_audio(run: RunFolder) -> set[str]:
    """Ids of the videos that have sound."""
    found: set[str] = set()
    for name in run.list("videos/part-*.parquet"):
        rows = run.read_columns(name, ["video_id", "has_audio"]).to_pylist()
        found.update(row["video_id"] for row in rows if row["has_audio"])
    return found


def source_is_back(uri: str, states: Mapping[str, InputState]) -> bool:
    """Whether a local input that had other bytes has those again that `prepare` recorded."""
    state, now = states.get(uri), local_state(uri)
    if state is None or now is None or state.num_bytes != now.num_bytes:
        return False
    try:
        with open_input(uri, expected=state):
            return True
    except VideoError:
        return False


def kept_clips(run: RunFolder, recipe: Recipe, *, before_captions: bool = False) -> dict[int, list[Clip]]:
    """Part -> its clips that pass every filter of the recipe, evaluated on the stored scores.

    Args:
        before_captions: without the semantic duplicate filter, whose embeddings come from captioning: its clips have to be
            captioned too, or the next run would not have their embeddings.
    """
    names = run.list("clips/part-*.parquet")
    tables = {part_number(name): run.read_table(name).select(CLIPS_SCHEMA.names).cast(CLIPS_SCHEMA) for name in names}
    if not tables:
        raise UsageError(f"{run.uri} holds no clips yet: run `recaption prepare --videos ... --out {run.uri}` first")
    filters = dataclasses.replace(recipe.filters, max_semantic_similarity=None) if before_captions else recipe.filters
    clips = with_decisions(run, pa.concat_tables(tables.values()))
    check_plugin_thresholds(filters, plugin_scores(clips))
    reasons = iter(drop_reasons(clips, filters, read_pairs(run)))
    return {part: [clip for clip in from_table(table, Clip) if next(reasons) is None] for part, table in tables.items()}
