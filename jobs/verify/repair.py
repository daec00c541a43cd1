"""`recaption verify --repair`: recomputes damaged parts and shards with the stage that wrote them; intact files stay.

    problem -> its part or shard -> is all that it is made from whole? -> are the source videos unchanged?
            -> remove the files -> run the stage -> verify again

Stages skip what is committed, so a run recomputes exactly what was removed, with the same bytes. A stage waits for the
stages that it is made from (repair_order.py): shards made while captions are lost would look whole, and lack clips. Two
repairs are refused, with the reason: parts whose source videos are gone or changed (recomputing them would lose their
clips), and parts written with other settings than run.yaml has now (recomputing them would recompute the whole stage). A
repair that is killed leaves parts missing; the next one finds them as damage and continues.
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
from jobs.recipe.inputs_table import INPUTS, refusals_in, write_inputs
from jobs.recipe.part_names import part_name, part_number
from jobs.recipe.run_inputs import check_same_recipe
from jobs.recipe.settings import Recipe, stage_hashes
from jobs.shard import planned_shards, shard
from jobs.verify.open_captions import ask_again
from jobs.verify.repair_order import FILES_OF_PARTS, open_sources, stage_of
from jobs.verify.repair_scope import RepairJob, RepairScope, find_scope
from jobs.verify.repair_text import rebuild_texts
from jobs.verify.sources import expected_sources, fetch_again, source_problem
from jobs.verify.verify import as_summary, find_problems
from packing.shards.index import is_committed
from recaption.captions.repeated import REPEATED_SCHEMA, repeated_name
from recaption.dedup.near_duplicates import PAIRS_SCHEMA, PERCEPTUAL_PAIRS, caption_set_of, semantic_pairs_file
from recaption.errors import UsageError
from recaption.ledger.ledger import CLIPS_SCHEMA, SHARD_SCHEMA
from recaption.ledger.lost_files import shard_sets
from recaption.ledger.problems import Problem, read_tables_or_problems
from recaption.ledger.spans import (
    PARTS_PER_FILE,
    SPANS_SCHEMA,
    list_hash,
    listed_from_spans,
    listed_rows,
    read_listed,
    write_listed,
)
from recaption.records import Video, schema_of
from recaption.run_folder import RunFolder, recipe_hash

NOT_REPAIRED = {
    "dropped_clip_in_shard": "thresholds were changed after sharding: run `recaption shard`",
    "caption_changed": "captions were changed after sharding: run `recaption shard`",
    "source_changed": "its source has other bytes now: `recaption prepare` takes it in as another video",
}
"""Kinds of problems that are no damage of what the run folder holds; other repairs do not wait for them."""


def repair_run(run: RunFolder, recipe: Recipe, cluster: Cluster, *, num_pairs: int | None) -> dict[str, Any]:
    """Verify, recompute what is damaged, verify again, until nothing changes; `problems` are the remaining ones.

    Raises:
        UsageError: the run folder was prepared with another recipe.
    """
    check_same_recipe(run, recipe)
    job = RepairJob(run, recipe, cluster)
    problems, pairs = find_problems(run, recipe, num_pairs=num_pairs, progress=cluster.progress)
    num_found = len(problems)
    unanswered: dict[str, str] = {}
    for may_ask in (True, False):
        seen: set[frozenset[Problem]] = set()
        while problems and frozenset(problems) not in seen:
            seen.add(frozenset(problems))
            if not _repair_round(job, problems, num_pairs):
                break
            problems, pairs = find_problems(run, recipe, num_pairs=num_pairs, progress=cluster.progress)
        if not problems:
            job.refused = dict(unanswered)
        if problems or not may_ask or not _ask_others_again(job, unanswered):
            break
        problems, pairs = find_problems(run, recipe, num_pairs=num_pairs, progress=cluster.progress)
    summary = as_summary(run, recipe, problems, pairs)
    return {**summary, "found": num_found, "repaired": sorted(set(job.repaired)), "refused": job.refused}


def _ask_others_again(job: RepairJob, unanswered: dict[str, str]) -> bool:
    """Fetch inputs and ask for captions that hosts and endpoints did not give before; whether anything came.

    Adds to `unanswered`, by name of the part, why captions stay open.
    """
    fetched = fetch_again(job)
    answered = ask_again(job)
    unanswered |= job.refused
    job.repaired += answered
    return bool(fetched or answered)


def _repair_round(job: RepairJob, problems: list[Problem], num_pairs: int | None) -> bool:
    """Repair what is made from whole stages only; whether anything was written.

    If that is nothing (an earlier stage is refused), stages whose own sources are whole, whatever those are made from.
    """
    for indirect in (True, False):
        job.refused.clear()
        num_repaired = len(job.repaired)
        _repair_stages(job, find_scope(job, _ready(job, problems, indirect=indirect), num_pairs))
        if len(job.repaired) > num_repaired:
            return True
    return False


def _ready(job: RepairJob, problems: list[Problem], *, indirect: bool) -> list[Problem]:
    """The problems whose stage can be made again now; the others are listed as refused, with the reason."""
    for problem in problems:
        if problem.kind in NOT_REPAIRED:
            job.refused[problem.where] = NOT_REPAIRED[problem.kind]
    repairable = [p for p in problems if p.kind not in NOT_REPAIRED]
    damaged = {stage_of(p) for p in repairable if p.kind != "temporary_file"}
    sets = {*shard_sets(job.run)}
    waits_for = {stage: open_sources(stage, damaged, sets, indirect=indirect) for stage in damaged}
    ready = []
    for problem in repairable:
        sources = () if problem.kind == "temporary_file" else waits_for[stage_of(problem)]
        if sources:
            job.refused[problem.where] = f"it is made from {', '.join(sorted(sources))}: to be repaired first"
        else:
            ready.append(problem)
    return ready


def _repair_stages(job: RepairJob, scope: RepairScope) -> None:
    for name in scope.temporary:
        job.run.remove(name)
        job.repaired.append(f"{name} (removed)")
    if scope.inputs_damaged:
        _rebuild_inputs(job)
    for name in sorted(scope.listed):
        _rebuild_listed(job, name)
    if scope.parts:
        _rebuild_parts(job, scope.parts)
    for name in sorted(scope.pair_tables):
        _rebuild_pair_table(job, name)
    for set_name, numbers in scope.captions.items():
        _rebuild_captions(job, set_name, numbers)
    if scope.shards or scope.lost_clips or scope.index:
        _rebuild_shards(job, scope)
    for compressor, names in scope.latents.items():
        _rebuild_latents(job, compressor, names)
    for folder, names in scope.texts.items():
        rebuild_texts(job, folder, names)


# --- stages -----------------------------------------------------------------------------------------------------------


def _rebuild_inputs(job: RepairJob) -> None:
    """Rebuild the list of inputs from RUN/videos, which has every input once, by part and in order.

    A damaged part's inputs are those of its clips, if their hash is the one that was recorded: not if an input failed.
    """
    numbers = sorted(
        {part_number(n) for folder in ("videos", "clips") for n in job.run.list(f"{folder}/part-*.parquet")}
    )
    rows: list[dict[str, Any]] = []
    videos = read_tables_or_problems(job.run, job.run.list("videos/part-*.parquet"), schema_of(Video))[0]
    refused = refusals_in(row for table in videos.values() for row in table.to_pylist())
    for number in numbers:
        uris = _inputs_of_part(job.run, number)
        if uris is None or numbers != list(range(len(numbers))):
            job.refused[INPUTS] = "parts of RUN/videos are damaged too: run `recaption prepare` with the same --videos"
            return
        listed = read_listed(job.run, number)
        rows += [
            {
                "uri": uri,
                "part": number,
                "refusal": refused.get(uri, ""),
                "list_hash": list_hash(listed.get(uri, ())),
            }
            for uri in uris
        ]
    write_inputs(job.run, rows)
    job.repaired.append(INPUTS)


def _rebuild_listed(job: RepairJob, name: str) -> None:
    """Rebuild what lists say of the videos of some parts from RUN/spans, which has every row of them."""
    first = part_number(name) * PARTS_PER_FILE
    rows: list[dict[str, Any]] = []
    for number in range(first, first + PARTS_PER_FILE):
        tables, unreadable = read_tables_or_problems(job.run, job.run.list(part_name("spans", number)), SPANS_SCHEMA)
        if unreadable:
            job.refused[name] = "parts of RUN/spans are damaged too: run `recaption prepare` with the same lists"
            return
        for table in tables.values():
            rows += listed_rows(number, listed_from_spans(table.to_pylist()))
    write_listed(job.run, name, rows)
    job.repaired.append(name)


def _inputs_of_part(run: RunFolder, number: int) -> list[str] | None:
    for folder, schema in (("videos", schema_of(Video)), ("clips", CLIPS_SCHEMA)):
        name = part_name(folder, number)
        for table in read_tables_or_problems(run, [name], schema)[0].values():
            uris = list(dict.fromkeys(table["uri"].to_pylist()))
            if run.table_metadata(name).get("inputs_hash") == recipe_hash(uris):
                return uris
    return None


def _rebuild_parts(job: RepairJob, numbers: set[int]) -> None:
    inputs: dict[int, list[str]] = defaultdict(list)
    for row in job.run.read_table(INPUTS).to_pylist():
        inputs[row["part"]].append(row["uri"])
    repairable_numbers = []
    for number in sorted(numbers):
        why = source_problem(job, expected_sources(job.run, number, inputs[number]))
        if why or number not in inputs:
            job.refused[part_name("videos", number)] = why or f"{INPUTS} does not list this part"
        else:
            repairable_numbers.append(number)
    for number in repairable_numbers:
        job.run.remove(
            part_name("videos", number)
        )  # written last, it commits the part; the other files are overwritten
        job.repaired += [name for folder in FILES_OF_PARTS if (name := part_name(folder, number)) and _has(job, folder)]
    if repairable_numbers:
        with contextlib.suppress(pa.ArrowException):  # as in _rebuild_captions
            prepare([], job.run.uri, job.recipe, job.cluster, only=repairable_numbers)


def _rebuild_pair_table(job: RepairJob, name: str) -> None:
    settings = job.recipe.prepare.duplicates
    job.run.remove(name)
    if name == PERCEPTUAL_PAIRS:
        find_perceptual(job.run, settings, progress=job.cluster.progress)
    elif name.endswith("/repeated.parquet"):
        find_repeated_captions(job.run, job.recipe.caption.repeats, name.split("/")[1])
    else:
        find_semantic(job.run, settings, caption_set_of(name))
    job.repaired.append(name)


def _has(job: RepairJob, folder: str) -> bool:
    return folder == "videos" or bool(job.run.list(f"{folder}/part-*.parquet"))


def _rebuild_captions(job: RepairJob, set_name: str, numbers: set[int]) -> None:
    folder = f"captions/{set_name}"
    intact = [name for name in job.run.list(f"{folder}/part-*.parquet") if part_number(name) not in numbers]
    expected = stage_hashes(job.recipe)["caption"]
    if any(job.run.table_metadata(name).get("recipe_hash") != expected for name in intact):
        why = (
            f"set {set_name!r} was written with other settings than run.yaml has now: run `recaption caption` with them"
        )
        job.refused |= {part_name(folder, number): why for number in numbers}
        return
    if why := _captioner_mismatch(job, intact):
        job.refused |= {part_name(folder, number): why for number in numbers}
        return
    repairable_numbers = []
    for number in sorted(numbers):
        rows = _source_rows(job.run, part_name("clips", number))
        why = source_problem(job, [(row["uri"], row["video_id"]) for row in rows])
        if why:
            job.refused[part_name(folder, number)] = why
        else:
            repairable_numbers.append(number)
    if repairable_numbers:
        _remove_unreadable_pair_tables(job, set_name)
    for number in repairable_numbers:
        for name in (part_name(f"embeddings/{set_name}", number), part_name(folder, number)):
            job.run.remove(name)
            job.repaired.append(name)
    if repairable_numbers:
        # At its end a stage reads all of its output for the summary, and fails on damaged files whose repair was
        # refused; by then every part is written.
        with contextlib.suppress(pa.ArrowException):
            caption(job.run, job.recipe, set_name, job.cluster, only=repairable_numbers)


def _remove_unreadable_pair_tables(job: RepairJob, set_name: str) -> None:
    """Captioning reads the tables of pairs, and writes those of its own set at its end; others are found missing."""
    for pattern, schema in (
        (semantic_pairs_file("*"), PAIRS_SCHEMA),
        (repeated_name(set_name), REPEATED_SCHEMA),
    ):
        for problem in read_tables_or_problems(job.run, job.run.list(pattern), schema)[1]:
            job.run.remove(problem.where)
            job.repaired.append(problem.where)


def _captioner_mismatch(job: RepairJob, intact: list[str]) -> str:
    """Why the captioner cannot be loaded or differs from the one of the intact parts; empty if it is the same."""
    try:
        captioner = open_captioner(job.recipe.caption, device="cpu")
    except UsageError as error:
        return f"no captioner: {error}"
    name = f"{captioner.name}@{captioner.weights_hash}"
    for part in intact:
        found = {row["captioner"] for row in job.run.read_table(part).to_pylist() if row["source"] == "model"} - {""}
        if found:
            return (
                "" if found == {name} else f"its other parts were written by {', '.join(sorted(found))}, not by {name}"
            )
    return ""


def _source_rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    tables, _ = read_tables_or_problems(run, [name] if run.exists(name) else [], CLIPS_SCHEMA)
    return [row for table in tables.values() for row in table.select(["clip_id", "uri", "video_id"]).to_pylist()]


def _rebuild_shards(job: RepairJob, scope: RepairScope) -> None:
    set_name, planned, hashes = _plan_of_shards(job, scope)
    if not set_name:
        why = "shards were written from other captions, thresholds or settings than now: run `recaption shard`"
        job.refused |= dict.fromkeys(sorted(scope.shards | scope.lost_clips) or ["index.parquet"], why)
        return
    # Every clip's id starts with the id of its video.
    sources = {s.name: [(c.uri, c.clip_id.partition("-")[0]) for c in s.clips] for s in planned}
    names = scope.shards | {s.name for s in planned for c in s.clips if c.clip_id in scope.lost_clips}
    repairable_names = []
    for name in sorted(names):
        why = source_problem(job, sources.get(name, ()))
        if why:
            job.refused[name] = why
        else:
            repairable_names.append(name)
    refused = [f"{name}.parquet" for name in names if name not in repairable_names]
    if (names and not repairable_names and not scope.index) or read_tables_or_problems(job.run, refused, SHARD_SCHEMA)[
        1
    ]:
        return  # nothing to write, or no index possible: it needs the table of every shard
    for name in repairable_names:
        job.run.remove(f"{name}.parquet")  # the commit mark goes first
        job.run.remove(f"{name}.tar")
        job.repaired.append(f"{name}.tar" if name in hashes else f"{name}.tar (removed)")
    shard(job.run, job.recipe, set_name, job.cluster, only=repairable_names)
    job.repaired.append("index.parquet")


def _plan_of_shards(job: RepairJob, scope: RepairScope) -> tuple[str, list[Any], dict[str, str]]:
    """(caption set, planned shards, their hashes) that all intact shards were written from; set "" if there is none."""
    lost = scope.lost_clips
    for set_name in shard_sets(job.run):
        try:
            planned, _, hashes = planned_shards(job.run, job.recipe, set_name)
        except (UsageError, pa.ArrowException, ValueError, KeyError, OSError):
            continue  # no such set, or a part of it is damaged and could not be repaired
        damaged = scope.shards | {s.name for s in planned for c in s.clips if c.clip_id in lost}
        present = [n.removesuffix(".parquet") for n in job.run.list("shards/*/*.parquet")]
        intact = [name for name in present if name not in damaged]
        if all(name in hashes and is_committed(job.run, name, hashes[name]) for name in intact):
            return set_name, planned, hashes
    return "", [], {}


def _rebuild_latents(job: RepairJob, compressor: str, names: set[str]) -> None:
    from train.compressors.registry import load

    folder = f"latents/{compressor}"
    try:
        is_same = load(job.recipe.encode.compressor).name == compressor
        keys = {name: key for _, name, key in planned_latents(job.run, job.recipe, compressor)}
    except (UsageError, pa.ArrowException, ValueError, OSError, KeyError) as error:
        job.refused[folder] = f"the compressor or the shards cannot be read: {error}"
        return
    present = [n.removesuffix(".parquet") for n in job.run.list(f"{folder}/*/*.parquet")]
    intact = [name for name in present if name not in names]
    if not is_same or not all(name in keys and is_committed(job.run, name, keys[name]) for name in intact):
        job.refused[folder] = "encoded by another compressor or from other shards than now: run `recaption encode`"
        return
    for name in sorted(names):
        job.run.remove(f"{name}.parquet")
        job.run.remove(f"{name}.tar")
        job.repaired.append(f"{name}.tar")
    encode(job.run, job.recipe, job.cluster)
    job.repaired.append(f"{folder}/index.parquet")
