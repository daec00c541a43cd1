"""Maps the problems that `verify` found to the parts and shards that have to be recomputed."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from jobs.cluster.cluster import Cluster
from jobs.recipe.inputs_table import INPUTS
from jobs.recipe.part_names import part_number
from jobs.recipe.settings import Recipe, stage_hashes
from jobs.verify.repair_order import FILES_OF_PARTS
from jobs.verify.verify import find_problems
from recaption.captions.sets import REJECTED_CLIPS
from recaption.ledger.latent_statistics import STATISTICS_FILE
from recaption.ledger.problems import Problem
from recaption.run_folder import RunFolder


@dataclass
class RepairScope:
    """Damaged units, each of which one stage can recompute."""

    temporary: list[str] = field(default_factory=list)
    parts: set[int] = field(default_factory=set)
    """Numbers of parts of `prepare`."""
    inputs_damaged: bool = False
    listed: set[str] = field(default_factory=set)
    """Files of what lists say."""
    captions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Caption set -> numbers of parts."""
    shards: set[str] = field(default_factory=set)
    """Shard names without extension."""
    pair_tables: set[str] = field(default_factory=set)
    """Tables of duplicate pairs and of repeated captions."""
    lost_clips: set[str] = field(default_factory=set)
    """Clips whose shard has to be looked up in the shard plan."""
    index: bool = False
    latents: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Compressor -> shard names without extension; empty set if only the index is damaged."""
    texts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Folder of encoded texts -> damaged files."""


@dataclass
class RepairJob:
    """State of one `verify --repair` call."""

    run: RunFolder
    recipe: Recipe
    cluster: Cluster
    repaired: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """File or part -> why it is not repaired."""
    sources: dict[str, str] = field(default_factory=dict)
    """Cache: uri -> video_id of its current bytes, empty if the file is gone."""


def find_scope(job: RepairJob, problems: list[Problem], num_pairs: int | None) -> RepairScope:
    """Assign each problem to the part or shard that has to be recomputed."""
    scope = RepairScope()
    for problem in problems:
        name, _, row = problem.where.partition(":")
        folder, _, rest = name.partition("/")
        if problem.kind == "temporary_file":
            scope.temporary.append(problem.where)
        elif problem.kind == "recipe_mixed" and folder not in ("shards", "latents", "scores"):
            _add_parts_of_other_recipes(job, name, scope)
        elif name == INPUTS and row:
            listed = job.run.read_table(INPUTS).to_pylist()
            scope.parts |= {one["part"] for one in listed if one["uri"] == row}
        elif name == INPUTS:
            scope.inputs_damaged = True
        elif folder == "listed":
            scope.listed.add(name)
        elif folder == "duplicates" or name.endswith("/repeated.parquet"):
            scope.pair_tables.add(name)
        elif folder in (*FILES_OF_PARTS, "scores"):
            scope.parts.add(part_number(name))
        elif problem.kind == "captions_shuffled":
            scope.captions[rest] |= _shuffled_parts(job, rest, num_pairs)
        elif folder in ("captions", "embeddings"):
            scope.captions[rest.partition("/")[0]].add(part_number(name))
        elif problem.kind == "clip_in_two_shards":
            scope.shards |= _shards_with(job.run, row)
        elif folder == "latents" and rest.endswith(("/index.parquet", f"/{STATISTICS_FILE}")):
            scope.latents[rest.partition("/")[0]] |= set()
        elif folder == "latents":
            scope.latents[rest.partition("/")[0]].add(re.sub(r"\.(tar|parquet)$", "", name))
        elif folder == "text":
            scope.texts["/".join(name.split("/")[:2])].add(name)
        elif name in ("index.parquet", REJECTED_CLIPS):
            scope.index = True
        elif folder == "shards":
            scope.shards.add(re.sub(r"\.(tar|parquet)$", "", name))
        elif "/" not in name:
            scope.lost_clips.add(name)
        else:
            job.refused[name] = "no stage writes this file"
    return scope


def _add_parts_of_other_recipes(job: RepairJob, name: str, scope: RepairScope) -> None:
    """Add the parts that were written with other settings than run.yaml has; refused if these are all parts."""
    pattern = re.sub(r"part-\d+", "part-*", name)
    hashes = {part: job.run.table_metadata(part).get("recipe_hash") for part in job.run.list(pattern)}
    stage = "caption" if name.startswith(("captions/", "embeddings/")) else "prepare"
    expected = stage_hashes(job.recipe)[stage]
    other_parts = {part_number(part) for part, found in hashes.items() if found != expected}
    if len(other_parts) == len(hashes):
        job.refused[name] = f"no part of {stage} was written with the settings that run.yaml has now"
    elif stage == "caption":
        scope.captions[name.split("/")[1]] |= other_parts or {part_number(name)}
    else:
        scope.parts |= other_parts


def _shuffled_parts(job: RepairJob, set_name: str, num_pairs: int | None) -> set[int]:
    """Parts with captions that do not match their clips; all parts if none can be singled out."""
    problems: list[Problem] = []
    if num_pairs is not None:
        problems, _ = find_problems(job.run, job.recipe, num_pairs=None, progress=job.cluster.progress)
    kinds = ("caption_of_other_clip", "clip_score_differs")
    wheres = [p.where for p in problems if p.kind in kinds and p.where.startswith(f"captions/{set_name}/")]
    names = {where.partition(":")[0] for where in wheres} or job.run.list(f"captions/{set_name}/part-*.parquet")
    return {part_number(name) for name in names}


def _shards_with(run: RunFolder, clip_id: str) -> set[str]:
    names = run.list("shards/*/*.parquet")
    return {n.removesuffix(".parquet") for n in names if clip_id in run.read_table(n)["clip_id"].to_pylist()}
