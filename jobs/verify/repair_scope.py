"""What has to be made anew for a list of problems, and nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from jobs.cluster.cluster import Cluster
from jobs.recipe.run_inputs import INPUTS, part_number
from jobs.recipe.settings import Recipe, stage_hashes
from jobs.shard import REJECTED
from jobs.verify.verify import find_problems
from recaption.ledger.latent_statistics import STATISTICS_FILE
from recaption.ledger.problems import Problem
from recaption.run_folder import RunFolder

PART_FOLDERS = ("videos", "clips", "previews", "fingerprints")
"""Files of one part of `prepare`, all written together."""


@dataclass
class _Damage:
    """Where the problems lie, as what a stage can make anew."""

    temporary: list[str] = field(default_factory=list)
    parts: set[int] = field(default_factory=set)
    """Of `prepare`."""
    inputs_lost: bool = False
    captions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Set -> parts."""
    shards: set[str] = field(default_factory=set)
    """Names without extension."""
    pairs: set[str] = field(default_factory=set)
    """Tables of near copies, and of captions said of many clips."""
    lost_clips: set[str] = field(default_factory=set)
    """Clips whose shard has to be looked up in the plan."""
    index: bool = False
    latents: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Compressor -> names without extension; none where only the index is damaged."""
    texts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Folder of encoded texts -> files."""


@dataclass
class Repair:
    """One call of `--repair`."""

    run: RunFolder
    recipe: Recipe
    cluster: Cluster
    remade: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """File or part -> why it is left as it is."""
    sources: dict[str, str] = field(default_factory=dict)
    """uri -> video_id of the file as it is now, empty where it is gone; each is read once."""


def _locate(job: Repair, problems: list[Problem], num_pairs: int | None) -> _Damage:
    """Sort problems by the part or shard that has to be made anew."""
    damage = _Damage()
    for problem in problems:
        name, _, row = problem.where.partition(":")
        folder, _, rest = name.partition("/")
        if problem.kind == "temporary_file":
            damage.temporary.append(problem.where)
        elif problem.kind == "recipe_mixed" and folder not in ("shards", "latents"):
            _add_strangers(job, name, damage)
        elif name == INPUTS and row:
            listed = job.run.read_table(INPUTS).to_pylist()
            damage.parts |= {one["part"] for one in listed if one["uri"] == row}
        elif name == INPUTS:
            damage.inputs_lost = True
        elif folder == "duplicates" or name.endswith("/repeated.parquet"):
            damage.pairs.add(name)
        elif folder in PART_FOLDERS:
            damage.parts.add(part_number(name))
        elif problem.kind == "captions_shuffled":
            damage.captions[rest] |= _shuffled_parts(job, rest, num_pairs)
        elif folder in ("captions", "embeddings"):
            damage.captions[rest.partition("/")[0]].add(part_number(name))
        elif problem.kind == "clip_in_two_shards":
            damage.shards |= _shards_with(job.run, row)
        elif folder == "latents" and rest.endswith(("/index.parquet", f"/{STATISTICS_FILE}")):
            damage.latents[rest.partition("/")[0]] |= set()
        elif folder == "latents":
            damage.latents[rest.partition("/")[0]].add(re.sub(r"\.(tar|parquet)$", "", name))
        elif folder == "text":
            damage.texts["/".join(name.split("/")[:2])].add(name)
        elif name in ("index.parquet", REJECTED):
            damage.index = True
        elif folder == "shards":
            damage.shards.add(re.sub(r"\.(tar|parquet)$", "", name))
        elif "/" not in name:
            damage.lost_clips.add(name)
        else:
            job.refused[name] = "no stage is known that makes this file alone"
    return damage


def _add_strangers(job: Repair, name: str, damage: _Damage) -> None:
    """Parts of the stage of `name` that were made by other settings than run.yaml has; none where all were."""
    pattern = re.sub(r"part-\d+", "part-*", name)
    hashes = {part: job.run.table_metadata(part).get("recipe_hash") for part in job.run.list(pattern)}
    stage = "caption" if name.startswith(("captions/", "embeddings/")) else "prepare"
    expected = stage_hashes(job.recipe)[stage]
    strangers = {part_number(part) for part, found in hashes.items() if found != expected}
    if len(strangers) == len(hashes):
        job.refused[name] = f"no part of {stage} was made with the settings that run.yaml has now"
    elif stage == "caption":
        damage.captions[name.split("/")[1]] |= strangers or {part_number(name)}
    else:
        damage.parts |= strangers


def _shuffled_parts(job: Repair, set_name: str, num_pairs: int | None) -> set[int]:
    """Parts that hold captions which do not match; all where none can be told apart."""
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
