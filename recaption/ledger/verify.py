"""`verify`: proof that a run folder is whole. What the ledger says is held against what lies in the files.

    verify(run, thresholds)            # [] where sums match, shards are whole and captions belong to their clips

Whether captions describe what their clips show is asked of the pixels: `recaption.ledger.caption_checks`.

Memory: tables of one shard, or of one part, at a time; of the whole run only what joins files: scores and ids of the
clips, states of the captions, the index. About 1.3 kB per clip (tests/benchmarks/jobs/bench_verify.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recaption.captions.repeated import REPEATED_SCHEMA, repeated_name
from recaption.captions.sets import (
    CAPTION_STATE_SCHEMA,
    REJECTED_CLIPS,
    caption_set_pattern,
    caption_sets,
    default_caption_set,
    main_captions,
    mark_repeated_captions,
)
from recaption.dedup.fingerprints import ClipFingerprint
from recaption.dedup.near_duplicates import PAIRS_SCHEMA
from recaption.ledger.encoded_texts import text_problems
from recaption.ledger.latent_statistics import statistics_problems
from recaption.ledger.ledger import (
    CLIPS_SCHEMA,
    INPUTS_SCHEMA,
    REJECTED_SCHEMA,
    SHARD_SCHEMA,
    SHARD_STATE_SCHEMA,
    clip_states,
    committed_clips,
    concat,
)
from recaption.ledger.problems import Problem, open_parts, temporary_files
from recaption.ledger.table_checks import caption_problems, input_problems, mixed_recipes, repeated, tiling_problems
from recaption.ledger.tar_checks import LATENT_MEMBERS, SHARD_MEMBERS, tar_problems
from recaption.quality.filters import FilterThresholds
from recaption.records import Caption, ClipEmbedding, ClipPreview, Sample, Video, conform, schema_of
from recaption.run_folder import RunFolder

INDEX = "index.parquet"


Track = Callable[[Sequence[str]], Iterable[str]]
"""Wraps the names of the tars that are read, for a progress bar."""


WRITTEN_WITH_VIDEOS = ("previews", "fingerprints")
"""Files of a part of `prepare` that are asked for nothing else; clips are asked for by their videos."""


VIDEO_COLUMNS = ("uri", "video_id", "num_frames", "duration_seconds", "status")


SPAN_COLUMNS = ("clip_id", "video_id", "uri", "start_frame", "end_frame", "start_seconds", "end_seconds")


CLIP_ID = pa.schema([("clip_id", pa.string())])


TEXT_SCHEMA = pa.schema([*CAPTION_STATE_SCHEMA, schema_of(Caption).field("text")])


@dataclass
class _Found:
    """What is known of the run so far; a stage with a file that does not open is left out of `tables`."""

    problems: list[Problem] = field(default_factory=list)
    tables: dict[str, dict[str, pa.Table]] = field(default_factory=dict)

    def has(self, *stages: str) -> bool:
        return all(stage in self.tables for stage in stages)


def verify(
    run: RunFolder, thresholds: FilterThresholds, set_name: str | None = None, *, track: Track = iter
) -> list[Problem]:
    """Everything in the run folder that is not as it should be; [] where all is well.

    A stage that has not run, or was killed between two parts, is no damage; shards without an index are. Where a table
    does not open, checks that need it are left out: one broken file is one problem, not a thousand.
    """
    found = _Found(list(temporary_files(run)))
    _read(run, found)
    if found.has("shards"):
        found.problems += _tar_files(run, "shards/*/*.tar", found, "shards", track)
        found.problems += _index_problems(run, found)
    if found.has("latents"):
        found.problems += _tar_files(run, "latents/*/*/*.tar", found, "latents", track)
    if found.has("latents", "latents index"):
        found.problems += statistics_problems(run)
    found.problems += text_problems(run)
    _check_rows(run, found)
    if found.has("clips", "duplicates", "shards", "rejected", "index"):
        set_name = set_name or default_caption_set(run)
        if set_name is None or found.has(f"captions/{set_name}", f"repeated/{set_name}"):
            found.problems += _state_problems(run, thresholds, set_name, found)
    if found.has("clips", "rejected") and run.exists(REJECTED_CLIPS):
        found.problems += _lost_captions(run, found)
    return found.problems


def _read(run: RunFolder, found: _Found) -> None:
    """Every table opens, has its columns, and was made by the same settings as its neighbours."""
    stages: dict[str, tuple[str, pa.Schema, Sequence[str] | None]] = {
        "videos": ("videos/part-*.parquet", schema_of(Video), VIDEO_COLUMNS),
        "clips": ("clips/part-*.parquet", CLIPS_SCHEMA, None),
        "shards": ("shards/*/*.parquet", SHARD_SCHEMA, SHARD_STATE_SCHEMA.names),
        "rejected": (REJECTED_CLIPS, REJECTED_SCHEMA, None),
        "index": (INDEX, schema_of(Sample), None),
        "inputs": ("inputs.parquet", INPUTS_SCHEMA, None),
        "previews": ("previews/part-*.parquet", schema_of(ClipPreview), ()),
        "fingerprints": ("fingerprints/part-*.parquet", schema_of(ClipFingerprint), ()),
        "duplicates": ("duplicates/*.parquet", PAIRS_SCHEMA, None),
        "latents": ("latents/*/*/*.parquet", SHARD_SCHEMA, ("clip_id", "status")),
        "latents index": ("latents/*/index.parquet", schema_of(Sample), ()),
    }
    for name in caption_sets(run):
        stages[f"captions/{name}"] = (caption_set_pattern(name), CAPTION_STATE_SCHEMA, None)
        embeddings = f"embeddings/{name}/part-*.parquet"
        stages[f"embeddings/{name}"] = (embeddings, schema_of(ClipEmbedding), ("clip_id",))
        stages[f"repeated/{name}"] = (repeated_name(name), REPEATED_SCHEMA, None)
    for stage, (pattern, schema, keep) in stages.items():
        names = committed_clips(run) if stage == "clips" else run.list(pattern)
        tables, unreadable = open_parts(run, names, schema, keep)
        found.problems += unreadable
        if not unreadable:
            found.tables[stage] = tables
            if not stage.startswith(("latents", "duplicates", "repeated")):
                found.problems += mixed_recipes(run, tables)


def _check_rows(run: RunFolder, found: _Found) -> None:
    """Videos, clips and captions against each other, part by part."""
    if found.has("videos", "clips"):
        for name, videos in found.tables["videos"].items():
            beside = name.replace("videos/", "clips/", 1)
            clips = found.tables["clips"].get(beside, CLIPS_SCHEMA.empty_table()).select(SPAN_COLUMNS)
            found.problems += tiling_problems(name, videos, beside, clips)
    if found.has("videos", "inputs"):
        finished = run.exists(INDEX)
        inputs = concat(found.tables["inputs"].values(), INPUTS_SCHEMA)
        if found.tables["inputs"]:
            found.problems += input_problems(inputs, found.tables["videos"], finished=finished)
        elif found.tables["videos"]:
            detail = "the list of inputs is gone: whether each has a row cannot be told"
            found.problems.append(Problem(kind="input_missing", where="inputs.parquet", detail=detail))
    for stage in WRITTEN_WITH_VIDEOS:
        for name in found.tables.get("videos", ()) if found.tables.get(stage) else ():
            beside = name.replace("videos/", f"{stage}/", 1)
            if beside not in found.tables[stage]:
                detail = f"gone, although {name}, which is written after it, is there"
                found.problems.append(Problem(kind="part_missing", where=beside, detail=detail))
    for stage, tables in found.tables.items():
        set_name = stage.partition("/")[2]
        if stage.startswith("captions/") and found.has("clips"):
            known = concat((t.select(["clip_id"]) for t in found.tables["clips"].values()), CLIP_ID)["clip_id"]
            for name, rows in tables.items():
                made_with = run.table_metadata(name).get("recipe_hash", "")
                found.problems += caption_problems(name, rows, known.combine_chunks(), made_with)
        if stage.startswith("captions/") and found.tables.get(f"embeddings/{set_name}"):
            found.problems += _lost_embeddings(set_name, tables, found.tables[f"embeddings/{set_name}"])


def _lost_captions(run: RunFolder, found: _Found) -> Iterator[Problem]:
    """Once there are shards, every part of clips has its part of captions, if only an empty one."""
    set_name = default_caption_set(run)
    present = run.list(caption_set_pattern(set_name)) if set_name else ()
    for name in found.tables["clips"] if present else ():
        beside = name.replace("clips/", f"captions/{set_name}/", 1)
        if beside not in present:
            detail = f"the captions of {name} are gone although there are shards of this set"
            yield Problem(kind="caption_missing", where=beside, detail=detail)


def _lost_embeddings(
    set_name: str, captions: dict[str, pa.Table], embeddings: dict[str, pa.Table]
) -> Iterator[Problem]:
    """A set that has embeddings has them for every part and every clip that it has a good text about."""
    for name, rows in captions.items():
        beside = name.replace("captions/", "embeddings/", 1)
        if beside not in embeddings:
            detail = f"the embeddings of {name} are gone; set {set_name!r} has others"
            yield Problem(kind="embedding_missing", where=beside, detail=detail)
            continue
        rows = main_captions(rows)
        ids = rows["clip_id"].filter(pc.is_null(rows["reason"]))
        missing = ids.filter(pc.invert(pc.is_in(ids, value_set=embeddings[beside]["clip_id"].combine_chunks())))
        for clip_id in missing.to_pylist():
            detail = "this clip has a caption of this set and no embedding"
            yield Problem(kind="embedding_missing", where=f"{beside}:{clip_id}", detail=detail)


# --- shards -----------------------------------------------------------------------------------------------------------


def _tar_files(run: RunFolder, pattern: str, found: _Found, stage: str, track: Track) -> Iterator[Problem]:
    """Every tar against its table, and the other way round; one shard in memory at a time."""
    tars = set(run.list(pattern))
    tables = found.tables[stage]
    extensions, payload = (LATENT_MEMBERS, "npy") if stage == "latents" else (SHARD_MEMBERS, "mp4")
    for name in track(sorted(tars | {table.removesuffix(".parquet") + ".tar" for table in tables})):
        beside = name.removesuffix(".tar") + ".parquet"
        if beside not in tables:
            yield Problem(kind="shard_unlisted", where=name, detail="a tar without the table that says what is in it")
            continue
        num_rows = pc.sum(pc.equal(tables[beside]["status"], "ok")).as_py() or 0
        if name in tars:
            rows = run.read_table(beside)
            rows = rows.filter(pc.equal(rows["status"], "ok")).to_pylist()
            sha256 = run.table_metadata(beside).get("tar_sha256", "")
            yield from tar_problems(run, name, rows, extensions=extensions, payload=payload, sha256=sha256)
        elif num_rows:
            detail = f"its table lists {num_rows} samples, the tar is gone"
            yield Problem(kind="shard_missing", where=name, detail=detail)
    if stage == "shards":
        written = {name: table.filter(pc.equal(table["status"], "ok")) for name, table in tables.items()}
        for name, clip_id in repeated(written, "clip_id"):
            where = f"{name.removesuffix('.parquet')}.tar:{clip_id}"
            yield Problem(kind="clip_in_two_shards", where=where, detail="another shard, or another row, has it too")


def _index_problems(run: RunFolder, found: _Found) -> Iterator[Problem]:
    """index.parquet is the good rows of all shard tables, nothing more."""
    tables = found.tables["shards"]
    if not run.exists(INDEX):
        if any(pc.any(pc.equal(table["status"], "ok")).as_py() for table in tables.values()):
            detail = "there are shards and no index; run `recaption shard` again"
            yield Problem(kind="index_missing", where=INDEX, detail=detail)
        return
    if not found.has("index"):
        return
    index = concat(found.tables["index"].values(), schema_of(Sample))
    shards = index["shard"].combine_chunks().dictionary_encode()
    order = np.argsort(shards.indices.to_numpy(), kind="stable")  # one shard's rows side by side, in their own order
    edges = np.searchsorted(shards.indices.to_numpy()[order], np.arange(len(shards.dictionary) + 1))
    rows_of = {shard: order[edges[i] : edges[i + 1]] for i, shard in enumerate(shards.dictionary.to_pylist())}
    for name in sorted({shard.removesuffix(".tar") + ".parquet" for shard in rows_of} - tables.keys()):
        shard = name.removesuffix(".parquet") + ".tar"
        detail = f"the index lists {len(rows_of[shard])} samples in it, its table is gone"
        yield Problem(kind="shard_missing", where=shard, detail=detail)
    for name in tables:
        shard = name.removesuffix(".parquet") + ".tar"
        rows = run.read_table(name)
        listed = rows.filter(pc.equal(rows["status"], "ok")).select(index.schema.names).cast(index.schema)
        indexed = index.take(rows_of.get(shard, np.zeros(0, np.int64)))
        if not listed.equals(indexed):
            yield from _row_differences(shard, listed, indexed)


def _row_differences(shard: str, listed: pa.Table, indexed: pa.Table) -> Iterator[Problem]:
    """Rows of the index that differ from those of one shard's table."""
    here = {row["clip_id"]: row for row in indexed.to_pylist()}
    there = {row["clip_id"]: row for row in listed.to_pylist()}
    twice = [clip_id for clip_id, count in Counter(indexed["clip_id"].to_pylist()).items() if count > 1]
    for clip_id in twice:
        yield Problem(kind="index_differs", where=f"{INDEX}:{clip_id}", detail="it has this row twice")
    for clip_id in sorted(here.keys() | there.keys()):
        where = f"{shard.removesuffix('.tar')}.parquet:{clip_id}"
        if clip_id not in here:
            where = f"{INDEX}:{clip_id}"
            detail = "the table of its shard has this sample, the index does not"
        elif clip_id not in there:
            detail = "the index has this sample, the table of the shard does not"
        elif wrong := [key for key in here[clip_id] if here[clip_id][key] != there[clip_id][key]]:
            key = wrong[0]
            detail = f"{key} is {there[clip_id][key]!r}, the index has {here[clip_id][key]!r}"
        else:
            continue
        yield Problem(kind="index_differs", where=where, detail=detail)


# --- states -----------------------------------------------------------------------------------------------------------


def _state_problems(
    run: RunFolder, thresholds: FilterThresholds, set_name: str | None, found: _Found
) -> Iterator[Problem]:
    """What the ledger says against what the shards hold."""
    clips = concat(found.tables["clips"].values(), CLIPS_SCHEMA)
    shards = concat(found.tables["shards"].values(), SHARD_STATE_SCHEMA)
    rejected = concat(found.tables["rejected"].values(), REJECTED_SCHEMA)
    texts_by_part = found.tables.get(f"captions/{set_name}", {})
    texts = concat(texts_by_part.values(), CAPTION_STATE_SCHEMA)
    pairs = concat(found.tables["duplicates"].values(), PAIRS_SCHEMA)
    repeated = concat(found.tables.get(f"repeated/{set_name}", {}).values(), REPEATED_SCHEMA)
    judged = mark_repeated_captions(texts, repeated, thresholds.max_clips_per_caption)
    states = clip_states(clips, thresholds, pairs, judged, shards, rejected)
    # The same bytes twice: the first row speaks for both.
    originals = states.filter(pc.invert(pc.equal(pc.fill_null(states["duplicate_of"], ""), states["clip_id"])))
    dropped = originals.filter(pc.equal(originals["state"], "dropped"))
    reasons = {
        row["clip_id"]: f"duplicate of {row['duplicate_of']}" if row["duplicate_of"] else row["reason"]
        for row in dropped.select(["clip_id", "reason", "duplicate_of"]).to_pylist()
    }
    written_as_dropped = shards.filter(
        pc.and_(pc.equal(shards["status"], "ok"), pc.is_in(shards["clip_id"], value_set=_ids(dropped)))
    )
    unknown = shards.filter(pc.invert(pc.is_in(shards["clip_id"], value_set=_ids(originals))))
    for row in unknown.to_pylist():
        where = f"{row['shard'].removesuffix('.tar')}.parquet:{row['clip_id']}"
        yield Problem(kind="unknown_clip_in_shard", where=where, detail="RUN/clips does not have this clip")
    for row in written_as_dropped.to_pylist():
        where = f"{row['shard'].removesuffix('.tar')}.parquet:{row['clip_id']}"
        reason = reasons[row["clip_id"]]
        detail = f"the filters drop this clip ({reason}); were thresholds changed after sharding?"
        yield Problem(kind="dropped_clip_in_shard", where=where, detail=detail)
    if not run.exists(INDEX):
        return
    index = concat(found.tables["index"].values(), schema_of(Sample))
    waiting = originals.filter(pc.equal(originals["state"], "waiting"))
    # Where the shard of an indexed clip is gone, that is reported once for the shard.
    waiting = waiting.filter(pc.invert(pc.is_in(waiting["clip_id"], value_set=_ids(index))))
    texts = main_captions(texts)
    is_good = pc.is_null(texts["reason"])
    inside = originals.filter(pc.equal(originals["state"], "in_shard"))
    lost = inside.filter(pc.invert(pc.is_in(inside["clip_id"], value_set=_ids(texts.filter(is_good)))))
    lost = lost.set_column(lost.schema.get_field_index("reason"), "reason", pa.array(["caption"] * lost.num_rows))
    waiting = pa.concat_tables([waiting, lost.cast(waiting.schema)]) if set_name is not None else waiting
    part_of = _parts_of(found.tables["clips"], _ids(waiting))
    for row in waiting.to_pylist():
        if row["reason"] == "caption":
            part = part_of[row["clip_id"]].replace("clips/", f"captions/{set_name}/", 1)
            if part not in texts_by_part and texts_by_part:
                continue  # reported once for the part
            where = f"{part}:{row['clip_id']}"
            detail = f"kept, and caption set {set_name!r} has no good text for it although the shards are finished"
            yield Problem(kind="caption_missing", where=where, detail=detail)
        else:
            detail = "kept, with a good caption, in no shard and not rejected although the shards are finished"
            yield Problem(kind="clip_missing_from_shards", where=row["clip_id"], detail=detail)
    if set_name is not None:
        yield from _changed_captions(run, set_name, index)


def _ids(table: pa.Table) -> pa.Array:
    return table["clip_id"].combine_chunks()


def _parts_of(clips: dict[str, pa.Table], wanted: pa.Array) -> dict[str, str]:
    """Clip id -> part of clips that has it first, for the wanted ids."""
    parts: dict[str, str] = {}
    for name, table in clips.items() if len(wanted) else ():
        for clip_id in table["clip_id"].filter(pc.is_in(table["clip_id"], value_set=wanted)).to_pylist():
            parts.setdefault(clip_id, name)
    return parts


def _changed_captions(run: RunFolder, set_name: str, index: pa.Table) -> Iterator[Problem]:
    """Samples whose text is no longer the one that the caption set has: one part of captions in memory at a time."""
    ids = _ids(index)
    for name in run.list(caption_set_pattern(set_name)):
        rows = main_captions(conform(run.read_table(name), TEXT_SCHEMA))
        rows = rows.filter(pc.is_null(rows["reason"]))
        place = pc.index_in(_ids(rows), value_set=ids)
        differs = pc.not_equal(index["caption"].combine_chunks().take(place), rows["text"].combine_chunks())
        for clip_id in _ids(rows).filter(pc.fill_null(differs, False)).to_pylist():
            detail = f"{name} has another text for it than its shard; was it captioned again after sharding?"
            yield Problem(kind="caption_changed", where=f"{name}:{clip_id}", detail=detail)
