"""Inputs of the stages in a run folder: run.yaml, the list of inputs with their parts, and the kept clips.

An input is assigned to a part once: neither a killed run nor more videos later change the numbers of existing parts.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import pyarrow as pa

from jobs.recipe.part_names import part_number
from jobs.recipe.settings import Recipe, from_dict, stage_hashes, to_dict
from recaption.dedup.near_duplicates import read_pairs
from recaption.errors import RecipeMismatchError, UsageError
from recaption.ledger.ledger import CLIPS_SCHEMA, with_decisions
from recaption.quality.filters import drop_reasons
from recaption.quality.plugins import check_plugin_thresholds
from recaption.records import Clip, from_table
from recaption.run_folder import RunFolder

RUN_YAML = "run.yaml"
INPUTS = "inputs.parquet"
INPUTS_SCHEMA = pa.schema([("uri", pa.string()), ("part", pa.int64())])
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


def plan_inputs(run: RunFolder, uris: list[str], part_size: int) -> dict[int, list[str]]:
    """Part -> its inputs. Known inputs keep their part; new ones get new parts after the last."""
    rows: list[dict[str, Any]] = run.read_table(INPUTS).to_pylist() if run.exists(INPUTS) else []
    known = {row["uri"] for row in rows}
    new = [uri for uri in uris if uri not in known]
    first_part = 1 + max((row["part"] for row in rows), default=-1)
    rows += [{"uri": uri, "part": first_part + i // part_size} for i, uri in enumerate(new)]
    if new:
        run.write_table(INPUTS, pa.Table.from_pylist(rows, schema=INPUTS_SCHEMA))
    parts: dict[int, list[str]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row["uri"])
    return parts


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
    check_plugin_thresholds(filters, clips)
    reasons = iter(drop_reasons(clips, filters, read_pairs(run)))
    return {part: [clip for clip in from_table(table, Clip) if next(reasons) is None] for part, table in tables.items()}
