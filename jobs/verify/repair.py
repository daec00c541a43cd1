"""`recaption verify --repair`: what is damaged is made anew by the stage that made it; what is whole is not touched.

    problem -> the part or shard it lies in -> is every source video still the same? -> remove it -> run the stage

Stages skip what is committed, so running one makes exactly what was removed, with the bytes it had. Two things are
refused, with the reason: parts whose source videos are gone or changed (making them anew would lose their clips), and
parts that were made with other settings than run.yaml has now (making them anew would make all of their stage anew).
Killed midway, a repair leaves parts missing; the next one sees that as damage and goes on.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any

import pyarrow as pa

from jobs.caption.caption import caption
from jobs.caption.repeated import find_repeated_captions
from jobs.caption.semantic import find_semantic
from jobs.caption.worker import open_captioner
from jobs.cluster.cluster import Cluster
from jobs.encode.encode import encode, planned_latents
from jobs.prepare.duplicates import find_perceptual
from jobs.prepare.prepare import prepare
from jobs.recipe.run_inputs import INPUTS, INPUTS_SCHEMA, check_same_recipe, part_name, part_number
from jobs.recipe.settings import Recipe, stage_hashes
from jobs.shard import REJECTED, planned_shards, shard
from jobs.verify.repair_scope import PART_FOLDERS, Repair, _Damage, _locate
from jobs.verify.repair_text import remake_texts
from jobs.verify.sources import _expected_sources, _why_lost
from jobs.verify.verify import as_summary, find_problems
from packing.shards.index import is_committed
from recaption.captions.sets import caption_sets, default_caption_set
from recaption.dedup.near_duplicates import PERCEPTUAL_PAIRS, caption_set_of
from recaption.errors import UsageError
from recaption.ledger.ledger import CLIPS_SCHEMA, SHARD_SCHEMA
from recaption.ledger.problems import Problem, read_tables_or_problems
from recaption.run_folder import RunFolder

MAX_ROUNDS = 4
"""Damage can hide other damage: a clip that is lost hides the shard it is missing from. One round per stage is enough."""


CONSEQUENCES = frozenset(
    {"caption_without_clip", "unknown_clip_in_shard", "caption_missing", "clip_missing_from_shards"}
)
"""Kinds that vanish by themselves where the stage before is made whole: looked at only once nothing else is wrong."""


STALE = {
    "dropped_clip_in_shard": "thresholds were changed after sharding: run `recaption shard`",
    "caption_changed": "captions were changed after sharding: run `recaption shard`",
}


def repair_run(run: RunFolder, recipe: Recipe, cluster: Cluster, *, num_pairs: int | None) -> dict[str, Any]:
    """Verify, make anew what is damaged, verify again. `problems` of the summary are those that are left.

    Raises:
        UsageError: the recipe is not the one that the folder was prepared with.
    """
    check_same_recipe(run, recipe)
    job = Repair(run, recipe, cluster)
    problems, pairs = find_problems(run, recipe, num_pairs=num_pairs, progress=cluster.progress)
    num_found = len(problems)
    for _ in range(MAX_ROUNDS if problems else 0):
        job.refused.clear()
        num_remade = len(job.remade)
        _one_round(job, problems, num_pairs)
        if len(job.remade) == num_remade:
            break
        problems, pairs = find_problems(run, recipe, num_pairs=num_pairs, progress=cluster.progress)
        if not problems:
            job.refused.clear()
            break
    summary = as_summary(run, recipe, problems, pairs)
    return {**summary, "found": num_found, "repaired": sorted(set(job.remade)), "refused": job.refused}


def _one_round(job: Repair, problems: list[Problem], num_pairs: int | None) -> None:
    for problem in problems:
        if problem.kind in STALE:
            job.refused[problem.where] = STALE[problem.kind]
    fresh = [p for p in problems if p.kind not in STALE]
    own = [p for p in fresh if not _may_be_consequence(p)]
    damage = _locate(job, own or fresh, num_pairs)
    for name in damage.temporary:
        job.run.remove(name)
        job.remade.append(f"{name} (removed)")
    if damage.inputs_lost and not _remake_inputs(job, damage.parts):
        return
    if damage.parts:
        _remake_parts(job, damage.parts)
    for name in damage.pairs:
        _remake_pairs(job, name)
    if read_tables_or_problems(job.run, job.run.list("clips/part-*.parquet"), CLIPS_SCHEMA)[1]:
        return  # which clips are kept cannot be told, so no later stage can run; each is reported again
    for set_name, numbers in damage.captions.items():
        _remake_captions(job, set_name, numbers)
    if damage.shards or damage.lost_clips or damage.index:
        _remake_shards(job, damage)
    for compressor, names in damage.latents.items():
        _remake_latents(job, compressor, names)
    for folder, names in damage.texts.items():
        remake_texts(job, folder, names)


def _may_be_consequence(problem: Problem) -> bool:
    """A file that is gone as a whole (it has no `:` and is no clip) is a cause."""
    return problem.kind in CONSEQUENCES and (":" in problem.where or "/" not in problem.where)


# --- stages -----------------------------------------------------------------------------------------------------------


def _remake_inputs(job: Repair, damaged: set[int]) -> bool:
    """The list of inputs from the rows of RUN/videos, which hold every input once, in its part and its order."""
    names = job.run.list("videos/part-*.parquet")
    numbers = {part_number(name) for name in names}
    if damaged or numbers != set(range(len(names))):
        why = "parts of RUN/videos are damaged too: run `recaption prepare` with the same --videos"
        job.refused[INPUTS] = why
        return False
    rows = [
        {"uri": uri, "part": part_number(name)} for name in names for uri in job.run.read_table(name)["uri"].to_pylist()
    ]
    job.run.write_table(INPUTS, pa.Table.from_pylist(rows, schema=INPUTS_SCHEMA))
    job.remade.append(INPUTS)
    return True


def _remake_parts(job: Repair, numbers: set[int]) -> None:
    inputs: dict[int, list[str]] = defaultdict(list)
    for row in job.run.read_table(INPUTS).to_pylist():
        inputs[row["part"]].append(row["uri"])
    open_numbers = []
    for number in sorted(numbers):
        why = _why_lost(job, _expected_sources(job.run, number, inputs[number]))
        if why or number not in inputs:
            job.refused[part_name("videos", number)] = why or f"{INPUTS} does not list this part"
        else:
            open_numbers.append(number)
    for number in open_numbers:
        job.run.remove(part_name("videos", number))  # which is written last and commits the part; the rest is replaced
        job.remade += [name for folder in PART_FOLDERS if (name := part_name(folder, number)) and _has(job, folder)]
    if open_numbers:
        with contextlib.suppress(pa.ArrowException):  # see caption, below
            prepare([], job.run.uri, job.recipe, job.cluster, only=open_numbers)


def _remake_pairs(job: Repair, name: str) -> None:
    settings = job.recipe.prepare.duplicates
    job.run.remove(name)
    if name == PERCEPTUAL_PAIRS:
        find_perceptual(job.run, settings, progress=job.cluster.progress)
    elif name.endswith("/repeated.parquet"):
        find_repeated_captions(job.run, job.recipe.caption.repeats, name.split("/")[1])
    else:
        find_semantic(job.run, settings, caption_set_of(name))
    job.remade.append(name)


def _has(job: Repair, folder: str) -> bool:
    return folder == "videos" or bool(job.run.list(f"{folder}/part-*.parquet"))


def _remake_captions(job: Repair, set_name: str, numbers: set[int]) -> None:
    folder = f"captions/{set_name}"
    whole = [name for name in job.run.list(f"{folder}/part-*.parquet") if part_number(name) not in numbers]
    expected = stage_hashes(job.recipe)["caption"]
    if any(job.run.table_metadata(name).get("recipe_hash") != expected for name in whole):
        why = f"set {set_name!r} was made with other settings than run.yaml has now: run `recaption caption` with them"
        job.refused |= {part_name(folder, number): why for number in numbers}
        return
    if why := _why_another_captioner(job, whole):
        job.refused |= {part_name(folder, number): why for number in numbers}
        return
    open_numbers = []
    for number in sorted(numbers):
        rows = _rows_of(job.run, part_name("clips", number))
        why = _why_lost(job, [(row["uri"], row["video_id"]) for row in rows])
        if why:
            job.refused[part_name(folder, number)] = why
        else:
            open_numbers.append(number)
    for number in open_numbers:
        for name in (part_name(f"embeddings/{set_name}", number), part_name(folder, number)):
            job.run.remove(name)
            job.remade.append(name)
    if open_numbers:
        # A stage sums up all of its output at its end, and stumbles there over files that had to be refused; by then
        # everything is made.
        with contextlib.suppress(pa.ArrowException):
            caption(job.run, job.recipe, set_name, job.cluster, only=open_numbers)


def _why_another_captioner(job: Repair, whole: list[str]) -> str:
    """Why the captioner cannot be had, or is not the one that wrote the parts that are whole; empty where it is."""
    try:
        captioner = open_captioner(job.recipe.caption, device="cpu")
    except UsageError as error:
        return f"no captioner: {error}"
    name = f"{captioner.name}@{captioner.weights_hash}"
    for part in whole:
        made_by = {row["captioner"] for row in job.run.read_table(part).to_pylist() if row["source"] == "model"} - {""}
        if made_by:
            return (
                "" if made_by == {name} else f"its other parts were made by {', '.join(sorted(made_by))}, not by {name}"
            )
    return ""


def _rows_of(run: RunFolder, name: str) -> list[dict[str, Any]]:
    tables, _ = read_tables_or_problems(run, [name] if run.exists(name) else [], CLIPS_SCHEMA)
    return [row for table in tables.values() for row in table.select(["clip_id", "uri", "video_id"]).to_pylist()]


def _remake_shards(job: Repair, damage: _Damage) -> None:
    set_name, planned, hashes = _plan_in_use(job, damage)
    if not set_name:
        why = "shards were made from other captions, thresholds or settings than now: run `recaption shard`"
        job.refused |= dict.fromkeys(sorted(damage.shards | damage.lost_clips) or ["index.parquet"], why)
        return
    # Every clip's id starts with the id of its video.
    sources = {s.name: [(c.uri, c.clip_id.partition("-")[0]) for c in s.clips] for s in planned}
    names = damage.shards | {s.name for s in planned for c in s.clips if c.clip_id in damage.lost_clips}
    open_names = []
    for name in sorted(names):
        why = _why_lost(job, sources.get(name, ()))
        if why:
            job.refused[name] = why
        else:
            open_names.append(name)
    kept = [f"{name}.parquet" for name in names if name not in open_names]
    if (names and not open_names and not damage.index) or read_tables_or_problems(job.run, kept, SHARD_SCHEMA)[1]:
        return  # nothing to make, or no index to be had: it needs the table of each shard
    for name in open_names:
        job.run.remove(f"{name}.parquet")  # the commit mark goes first
        job.run.remove(f"{name}.tar")
        job.remade.append(f"{name}.tar" if name in hashes else f"{name}.tar (removed)")
    shard(job.run, job.recipe, set_name, job.cluster, only=open_names)
    job.remade.append("index.parquet")


def _plan_in_use(job: Repair, damage: _Damage) -> tuple[str, list[Any], dict[str, str]]:
    """(caption set, plan, hashes) by which all undamaged shards were made; no set where there is none."""
    lost = damage.lost_clips
    tables, unreadable = read_tables_or_problems(job.run, job.run.list(REJECTED), pa.schema([("clip_id", pa.string())]))
    sets = caption_sets(job.run) if unreadable or not tables else [default_caption_set(job.run)]
    for set_name in sets:
        try:
            planned, _, hashes = planned_shards(job.run, job.recipe, set_name or "")
        except (UsageError, pa.ArrowException, ValueError, KeyError, OSError):
            continue  # no such set, or a part of it that does not open and could not be made anew
        damaged = damage.shards | {s.name for s in planned for c in s.clips if c.clip_id in lost}
        present = [n.removesuffix(".parquet") for n in job.run.list("shards/*/*.parquet")]
        whole = [name for name in present if name not in damaged]
        if all(name in hashes and is_committed(job.run, name, hashes[name]) for name in whole):
            return set_name or "", planned, hashes
    return "", [], {}


def _remake_latents(job: Repair, compressor: str, names: set[str]) -> None:
    from train.compressors.registry import load

    folder = f"latents/{compressor}"
    try:
        is_same = load(job.recipe.encode.compressor).name == compressor
        keys = {name: key for _, name, key in planned_latents(job.run, job.recipe, compressor)}
    except (UsageError, pa.ArrowException, ValueError, OSError, KeyError) as error:
        job.refused[folder] = f"the compressor or the shards cannot be had: {error}"
        return
    present = [n.removesuffix(".parquet") for n in job.run.list(f"{folder}/*/*.parquet")]
    whole = [name for name in present if name not in names]
    if not is_same or not all(name in keys and is_committed(job.run, name, keys[name]) for name in whole):
        job.refused[folder] = "made with another compressor or other shards than now: run `recaption encode`"
        return
    for name in sorted(names):
        job.run.remove(f"{name}.parquet")
        job.run.remove(f"{name}.tar")
        job.remade.append(f"{name}.tar")
    encode(job.run, job.recipe, job.cluster)
    job.remade.append(f"{folder}/index.parquet")
