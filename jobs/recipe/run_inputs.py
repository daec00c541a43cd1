"""Inputs of the stages in a run folder: run.yaml, the list of inputs with their parts, and the kept clips.

An input is assigned to a part once: neither a killed run nor more videos later change the numbers of existing parts.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from jobs.recipe.part_names import part_number
from jobs.recipe.settings import Recipe, from_dict, stage_hashes, to_dict
from recaption.dedup.near_duplicates import read_pairs
from recaption.errors import RecipeMismatchError, StorageError, UsageError, VideoError
from recaption.inputs.open_input import InputState, local_state, open_input
from recaption.inputs.paths import REFUSED
from recaption.ledger.ledger import CLIPS_SCHEMA, INPUTS_SCHEMA, with_decisions
from recaption.quality.filters import drop_reasons, plugin_scores
from recaption.quality.plugins import check_plugin_thresholds
from recaption.records import Clip, from_table
from recaption.run_folder import RunFolder

RUN_YAML = "run.yaml"
INPUTS = "inputs.parquet"
LISTED_INPUTS_SCHEMA = INPUTS_SCHEMA.append(pa.field("refusal", pa.string()))
"""What is written; the ledger counts by the other columns. `refusal`: why what is named cannot be an input (a folder that
may not be read, an empty entry of a list); else ""."""
VERSIONED = ("recaption", "torch", "open_clip_torch", "transformers", "av", "decord2", "webdataset", "ray", "pyarrow")


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


def plan_inputs(
    run: RunFolder, uris: Sequence[str], part_size: int, refused: Mapping[str, str] | None = None
) -> dict[int, list[str]]:
    """Part -> its inputs. Known inputs keep their part; new ones get new parts after the last.

    Args:
        uris: all that is named.
        refused: those of them that cannot be inputs -> why.
    """
    refused, named = refused or {}, set(uris)
    before = read_inputs(run)
    rows = [row | {"refusal": refused.get(row["uri"], "")} if row["uri"] in named else row for row in before]
    known = {row["uri"] for row in rows}
    new = [uri for uri in uris if uri not in known]
    first_part = 1 + max((row["part"] for row in rows), default=-1)
    rows += [
        {"uri": uri, "part": first_part + i // part_size, "refusal": refused.get(uri, "")} for i, uri in enumerate(new)
    ]
    if rows != before:
        write_inputs(run, rows)
    return parts_of(rows)


def read_inputs(run: RunFolder) -> list[dict[str, Any]]:
    """Rows of the list of inputs (columns of `LISTED_INPUTS_SCHEMA`), in order; [] where there is none yet."""
    rows = run.read_table(INPUTS).to_pylist() if run.exists(INPUTS) else []
    return [{"uri": row["uri"], "part": row["part"], "refusal": row.get("refusal") or ""} for row in rows]


def write_inputs(run: RunFolder, rows: list[dict[str, Any]]) -> None:
    """Replace the list of inputs."""
    run.write_table(INPUTS, pa.Table.from_pylist(rows, schema=LISTED_INPUTS_SCHEMA))


def parts_of(rows: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
    """Part -> its inputs, in order."""
    parts: dict[int, list[str]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row["uri"])
    return parts


def refusals_in(videos: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What is refused -> why, by rows of RUN/videos: to rebuild the list of inputs."""
    refused = [row for row in videos if not row["video_id"] and row["detail"].startswith(REFUSED)]
    return {row["uri"]: row["detail"].removeprefix(REFUSED) for row in refused}


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
