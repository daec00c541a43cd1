"""Consistency check of a whole run folder: tables, shards, index and captions against each other and the ledger.

    verify(run, thresholds)            # [] where sums match, shards are whole and captions belong to their clips

Whether captions match the frames of their clips is checked by decoding some of them: caption_checks.py.

Memory: tables of one shard, or of one part, at a time; of the whole run only what is needed across files: scores and ids
of the clips, states of the captions, the index. About 1.3 kB per clip (tests/benchmarks/jobs/bench_verify.py).
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
    is_open,
    main_captions,
    mark_repeated_captions,
)
from recaption.dedup.fingerprints import ClipFingerprint
from recaption.dedup.near_duplicates import PAIRS_SCHEMA
from recaption.errors import OutsideRunError
from recaption.ledger.encoded_texts import check_encoded_texts
from recaption.ledger.latent_statistics import LATENT_INDEX_SCHEMA, check_statistics
from recaption.ledger.ledger import (
    CLIPS_SCHEMA,
    INPUTS_SCHEMA,
    REJECTED_SCHEMA,
    SHARD_SCHEMA,
    SHARD_STATE_SCHEMA,
    VIDEO_FLAGS_SCHEMA,
    clip_states,
    committed_clips,
    concat,
)
from recaption.ledger.lost_files import INDEX, find_lost_files
from recaption.ledger.problems import Problem, check_temporary_files, read_tables_or_problems
from recaption.ledger.removed import REMOVED, REMOVED_SCHEMA, check_unfinished_removal
from recaption.ledger.spans import LISTED_PARTS, LISTED_SCHEMA, SPAN_PARTS, SPANS_SCHEMA, check_spans
from recaption.ledger.table_checks import (
    check_captions,
    check_coverage,
    check_inputs,
    check_recipe_hashes,
    find_duplicates,
)
from recaption.ledger.tar_checks import LATENT_MEMBERS, SHARD_MEMBERS, check_tar
from recaption.ledger.verdicts import VERDICT_PARTS, VERDICT_SCHEMA, add_verdicts, last_verdicts
from recaption.quality.filters import VIDEO_FLAG_SOURCES, FilterThresholds, with_video_flags
from recaption.quality.plugins import SCORE_PARTS, add_plugin_scores, read_plugin_scores
from recaption.records import Caption, ClipEmbedding, ClipPreview, Sample, Video, conform, schema_of
from recaption.run_folder import RunFolder

Track = Callable[[Sequence[str]], Iterable[str]]
"""Wraps the names of the tars that are read, for a progress bar."""
WRITTEN_WITH_VIDEOS = ("previews", "fingerprints")
"""Further files of a part of `prepare` whose existence is checked; that of clips follows from their videos."""
VIDEO_COLUMNS = (
    *("uri", "num_frames", "duration_seconds", "status", "list_hash", "is_cut_by_list", "outside_seconds"),
    *VIDEO_FLAG_SOURCES,
)
SPAN_COLUMNS = ("clip_id", "video_id", "uri", "start_frame", "end_frame", "start_seconds", "end_seconds")
CLIP_ID_SCHEMA = pa.schema([("clip_id", pa.string())])
LATENT_SAMPLE_SCHEMA = pa.schema([*schema_of(Sample), *(f for f in LATENT_INDEX_SCHEMA if f.name != "shard")])
TEXT_SCHEMA = pa.schema([*CAPTION_STATE_SCHEMA, schema_of(Caption).field("text")])


@dataclass
class _OpenedTables:
    """The tables of a run by stage, and the problems so far; a stage with an unreadable file is not in `tables`."""

    problems: list[Problem] = field(default_factory=list)
    tables: dict[str, dict[str, pa.Table]] = field(default_factory=dict)
    """Stage -> file name -> table."""

    def has(self, *stages: str) -> bool:
        return all(stage in self.tables for stage in stages)


def verify(
    run: RunFolder,
    thresholds: FilterThresholds,
    set_name: str | None = None,
    *,
    has_perceptual_pairs: bool = False,
    track: Track = iter,
) -> list[Problem]:
    """All problems of a run folder; [] where there are none.

    A stage that has not run, or was killed between two parts, is not a problem; shards without an index are. Where a
    table cannot be read, checks that need it are skipped: one broken file is one problem, not a thousand.

    Args:
        has_perceptual_pairs: whether the recipe searches for perceptual duplicates.
    """
    opened = _OpenedTables([*check_temporary_files(run), *check_unfinished_removal(run)])
    _read(run, opened)
    for stage in ("shards", "index", "latents", "latents index"):
        opened.problems += _check_shard_names(run, opened.tables.get(stage, {}))
    outside = {problem.where for problem in opened.problems if problem.kind == "path_outside"}
    if opened.has("shards"):
        opened.problems += _check_tars(run, "shards/*/*.tar", opened, "shards", track)
        opened.problems += _check_index(run, opened) if INDEX not in outside else ()
    if opened.has("latents"):
        opened.problems += _check_tars(run, "latents/*/*/*.tar", opened, "latents", track)
    if opened.has("latents", "latents index") and not outside & opened.tables["latents index"].keys():
        opened.problems += check_statistics(run)
    opened.problems += check_encoded_texts(run)
    _check_tables(run, opened)
    judged = ("videos", "clips", "duplicates", "verdicts", *_plugin_folders(run))
    if opened.has(*judged, "shards", "rejected", "index"):
        set_name = set_name or default_caption_set(run)
        if set_name is None or opened.has(f"captions/{set_name}", f"repeated/{set_name}"):
            opened.problems += _check_states(run, thresholds, set_name, opened)
    found = {(problem.kind, problem.where) for problem in opened.problems}
    lost = find_lost_files(run, has_perceptual_pairs=has_perceptual_pairs)
    return opened.problems + [problem for problem in lost if (problem.kind, problem.where) not in found]


def _read(run: RunFolder, opened: _OpenedTables) -> None:
    """Read all tables: each opens, has its columns, and was made with the same settings as the others of its stage."""
    stages: dict[str, tuple[str, pa.Schema, Sequence[str] | None]] = {
        "videos": ("videos/part-*.parquet", schema_of(Video), VIDEO_COLUMNS),
        "clips": ("clips/part-*.parquet", CLIPS_SCHEMA, None),
        "shards": ("shards/*/*.parquet", SHARD_SCHEMA, SHARD_STATE_SCHEMA.names),
        "rejected": (REJECTED_CLIPS, REJECTED_SCHEMA, None),
        "index": (INDEX, schema_of(Sample), None),
        "inputs": ("inputs.parquet", INPUTS_SCHEMA, None),
        "previews": ("previews/part-*.parquet", schema_of(ClipPreview), ()),
        "fingerprints": ("fingerprints/part-*.parquet", schema_of(ClipFingerprint), ()),
        "spans": (SPAN_PARTS, SPANS_SCHEMA, ("uri", "clip_ids")),
        "listed": (LISTED_PARTS, LISTED_SCHEMA, ("part", "uri")),
        "duplicates": ("duplicates/*.parquet", PAIRS_SCHEMA, None),
        "latents": ("latents/*/*/*.parquet", SHARD_SCHEMA, ("clip_id", "status", "shard")),
        "latents index": ("latents/*/index.parquet", LATENT_SAMPLE_SCHEMA, ("shard",)),
        "verdicts": (VERDICT_PARTS, VERDICT_SCHEMA, None),
        "removed": (REMOVED, REMOVED_SCHEMA, ()),
    }
    stages |= {name: (f"{name}/part-*.parquet", CLIP_ID_SCHEMA, None) for name in _plugin_folders(run)}
    for name in caption_sets(run):
        stages[f"captions/{name}"] = (caption_set_pattern(name), CAPTION_STATE_SCHEMA, None)
        embeddings = f"embeddings/{name}/part-*.parquet"
        stages[f"embeddings/{name}"] = (embeddings, schema_of(ClipEmbedding), ("clip_id",))
        stages[f"repeated/{name}"] = (repeated_name(name), REPEATED_SCHEMA, None)
    for stage, (pattern, schema, columns) in stages.items():
        names = committed_clips(run) if stage == "clips" else run.list(pattern)
        tables, unreadable = read_tables_or_problems(run, names, schema, columns)
        opened.problems += unreadable
        if not unreadable:
            opened.tables[stage] = tables
            if not stage.startswith(("latents", "duplicates", "repeated", "verdicts", "removed", "listed")):
                opened.problems += check_recipe_hashes(run, tables)


def _plugin_folders(run: RunFolder) -> list[str]:
    """Folders of the scores of plug-ins."""
    return sorted({name.rpartition("/")[0] for name in run.list(SCORE_PARTS)})


def _check_tables(run: RunFolder, opened: _OpenedTables) -> None:
    """Check videos, clips, captions and embeddings against each other, part by part."""
    if opened.has("videos", "clips"):
        for name, videos in opened.tables["videos"].items():
            clips_name = name.replace("videos/", "clips/", 1)
            clips = opened.tables["clips"].get(clips_name, CLIPS_SCHEMA.empty_table()).select(SPAN_COLUMNS)
            opened.problems += check_coverage(name, videos, clips_name, clips)
            if opened.has("spans") and pc.any(pc.not_equal(videos["list_hash"], "")).as_py():
                spans_name = name.replace("videos/", "spans/", 1)
                if spans_name in opened.tables["spans"]:
                    spans, clip_ids = opened.tables["spans"][spans_name], set(clips["clip_id"].to_pylist())
                    opened.problems += check_spans(spans_name, spans, videos, clip_ids)
                else:
                    detail = f"missing, although {name}, which is written after it, has videos of lists"
                    opened.problems.append(Problem(kind="part_missing", where=spans_name, detail=detail))
    if opened.has("videos", "inputs"):
        finished = run.exists(INDEX)
        inputs = concat(opened.tables["inputs"].values(), INPUTS_SCHEMA)
        if opened.tables["inputs"]:
            opened.problems += check_inputs(inputs, opened.tables["videos"], finished=finished)
    for stage in WRITTEN_WITH_VIDEOS:
        for name in opened.tables.get("videos", ()) if opened.tables.get(stage) else ():
            expected = name.replace("videos/", f"{stage}/", 1)
            if expected not in opened.tables[stage]:
                detail = f"missing, although {name}, which is written after it, exists"
                opened.problems.append(Problem(kind="part_missing", where=expected, detail=detail))
    for stage, tables in opened.tables.items():
        set_name = stage.partition("/")[2]
        if stage.startswith("captions/") and opened.has("clips"):
            clip_tables = (table.select(["clip_id"]) for table in opened.tables["clips"].values())
            clip_ids = _ids(concat(clip_tables, CLIP_ID_SCHEMA))
            for name, rows in tables.items():
                recipe_hash = run.table_metadata(name).get("recipe_hash", "")
                opened.problems += check_captions(name, rows, clip_ids, recipe_hash)
        if stage.startswith("captions/") and opened.tables.get(f"embeddings/{set_name}"):
            opened.problems += _check_embeddings(set_name, tables, opened.tables[f"embeddings/{set_name}"])


def _check_embeddings(
    set_name: str, captions: dict[str, pa.Table], embeddings: dict[str, pa.Table]
) -> Iterator[Problem]:
    """A set that has embeddings has them for every part, and for every clip with a good main caption."""
    for name, rows in captions.items():
        embeddings_name = name.replace("captions/", "embeddings/", 1)
        if embeddings_name not in embeddings:
            detail = f"the embeddings of {name} are missing; set {set_name!r} has others"
            yield Problem(kind="embedding_missing", where=embeddings_name, detail=detail)
            continue
        rows = main_captions(rows)
        ids = rows["clip_id"].filter(pc.is_null(rows["reason"]))
        missing = ids.filter(pc.invert(pc.is_in(ids, value_set=_ids(embeddings[embeddings_name]))))
        for clip_id in missing.to_pylist():
            detail = "this clip has a caption of this set and no embedding"
            yield Problem(kind="embedding_missing", where=f"{embeddings_name}:{clip_id}", detail=detail)


# --- shards -----------------------------------------------------------------------------------------------------------


def _check_tars(run: RunFolder, pattern: str, opened: _OpenedTables, stage: str, track: Track) -> Iterator[Problem]:
    """Check every tar against its table and every table against its tar; one shard in memory at a time."""
    tars = set(run.list(pattern))
    tables = opened.tables[stage]
    extensions, payload = (LATENT_MEMBERS, "npy") if stage == "latents" else (SHARD_MEMBERS, "mp4")
    for name in track(sorted(tars | {table.removesuffix(".parquet") + ".tar" for table in tables})):
        table_name = name.removesuffix(".tar") + ".parquet"
        if table_name not in tables:
            yield Problem(kind="shard_unlisted", where=name, detail="the table that lists its samples is missing")
            continue
        num_rows = pc.sum(pc.equal(tables[table_name]["status"], "ok")).as_py() or 0
        if outside := _why_outside(run, name):
            yield Problem(kind="path_outside", where=name, detail=outside)
        elif name in tars:
            rows = run.read_table(table_name)
            rows = rows.filter(pc.equal(rows["status"], "ok")).to_pylist()
            sha256 = run.table_metadata(table_name).get("tar_sha256", "")
            yield from check_tar(run, name, rows, extensions=extensions, payload=payload, sha256=sha256)
        elif num_rows:
            detail = f"its table lists {num_rows} samples, the tar is missing"
            yield Problem(kind="shard_missing", where=name, detail=detail)
    if stage == "shards":
        written = {name: table.filter(pc.equal(table["status"], "ok")) for name, table in tables.items()}
        for name, clip_id in find_duplicates(written, "clip_id"):
            where = f"{name.removesuffix('.parquet')}.tar:{clip_id}"
            yield Problem(kind="clip_in_two_shards", where=where, detail="this clip is in another shard or row too")


def _check_shard_names(run: RunFolder, tables: dict[str, pa.Table]) -> Iterator[Problem]:
    """The shards that tables name lie in the run folder; the table of a shard names that one only."""
    for name, table in tables.items():
        shards = pc.unique(table["shard"]).to_pylist()
        for outside in filter(None, (_why_outside(run, shard) for shard in shards)):
            yield Problem(kind="path_outside", where=name, detail=f"it lists samples in another place: {outside}")
            break
        else:
            expected = name.removesuffix(".parquet") + ".tar"
            if not name.endswith(INDEX) and any(shard != expected for shard in shards):
                other = next(shard for shard in shards if shard != expected)
                yield Problem(kind="index_differs", where=name, detail=f"it lists samples of {other!r}")


def _why_outside(run: RunFolder, name: str) -> str:
    """Why a name is none of the run folder; "" where it is one."""
    try:
        run.path_inside(name)
    except OutsideRunError as error:
        return str(error)
    return ""


def _check_index(run: RunFolder, opened: _OpenedTables) -> Iterator[Problem]:
    """index.parquet has exactly the rows with status "ok" of all shard tables."""
    tables = opened.tables["shards"]
    if not run.exists(INDEX):
        if any(pc.any(pc.equal(table["status"], "ok")).as_py() for table in tables.values()):
            detail = "there are shards and no index; run `recaption shard` again"
            yield Problem(kind="index_missing", where=INDEX, detail=detail)
        return
    if not opened.has("index"):
        return
    index = concat(opened.tables["index"].values(), schema_of(Sample))
    shards = index["shard"].combine_chunks().dictionary_encode()
    order = np.argsort(shards.indices.to_numpy(), kind="stable")  # one shard's rows side by side, in their own order
    edges = np.searchsorted(shards.indices.to_numpy()[order], np.arange(len(shards.dictionary) + 1))
    rows_of = {shard: order[edges[i] : edges[i + 1]] for i, shard in enumerate(shards.dictionary.to_pylist())}
    for name in sorted({shard.removesuffix(".tar") + ".parquet" for shard in rows_of} - tables.keys()):
        shard = name.removesuffix(".parquet") + ".tar"
        detail = f"the index lists {len(rows_of[shard])} samples in it, its table is missing"
        yield Problem(kind="shard_missing", where=shard, detail=detail)
    for name in tables:
        shard = name.removesuffix(".parquet") + ".tar"
        rows = run.read_table(name)
        listed = rows.filter(pc.equal(rows["status"], "ok")).select(index.schema.names).cast(index.schema)
        indexed = index.take(rows_of.get(shard, np.zeros(0, np.int64)))
        if not listed.equals(indexed):
            yield from _compare_rows(shard, listed, indexed)


def _compare_rows(shard: str, listed: pa.Table, indexed: pa.Table) -> Iterator[Problem]:
    """Rows of the index that differ from those of one shard's table."""
    in_index = {row["clip_id"]: row for row in indexed.to_pylist()}
    in_table = {row["clip_id"]: row for row in listed.to_pylist()}
    duplicated = [clip_id for clip_id, count in Counter(indexed["clip_id"].to_pylist()).items() if count > 1]
    for clip_id in duplicated:
        yield Problem(kind="index_differs", where=f"{INDEX}:{clip_id}", detail="it has this row twice")
    for clip_id in sorted(in_index.keys() | in_table.keys()):
        where = f"{shard.removesuffix('.tar')}.parquet:{clip_id}"
        if clip_id not in in_index:
            where = f"{INDEX}:{clip_id}"
            detail = "the table of its shard has this sample, the index does not"
        elif clip_id not in in_table:
            detail = "the index has this sample, the table of the shard does not"
        elif wrong := [key for key in in_index[clip_id] if in_index[clip_id][key] != in_table[clip_id][key]]:
            key = wrong[0]
            detail = f"{key} is {in_table[clip_id][key]!r}, the index has {in_index[clip_id][key]!r}"
        else:
            continue
        yield Problem(kind="index_differs", where=where, detail=detail)


# --- states -----------------------------------------------------------------------------------------------------------


def _check_states(
    run: RunFolder, thresholds: FilterThresholds, set_name: str | None, opened: _OpenedTables
) -> Iterator[Problem]:
    """Check the states of the ledger against the contents of shards and index."""
    videos = concat(opened.tables["videos"].values(), VIDEO_FLAGS_SCHEMA)
    clips = with_video_flags(concat(opened.tables["clips"].values(), CLIPS_SCHEMA), videos)
    clips = add_verdicts(
        add_plugin_scores(clips, read_plugin_scores(run)), last_verdicts(opened.tables["verdicts"].values())
    )
    shards = concat(opened.tables["shards"].values(), SHARD_STATE_SCHEMA)
    rejected = concat(opened.tables["rejected"].values(), REJECTED_SCHEMA)
    captions_by_part = opened.tables.get(f"captions/{set_name}", {})
    captions = concat(captions_by_part.values(), CAPTION_STATE_SCHEMA)
    pairs = concat(opened.tables["duplicates"].values(), PAIRS_SCHEMA)
    repeated = concat(opened.tables.get(f"repeated/{set_name}", {}).values(), REPEATED_SCHEMA)
    marked = mark_repeated_captions(captions, repeated, thresholds.max_clips_per_caption)
    states = clip_states(clips, thresholds, pairs, marked, shards, rejected)
    # Two inputs with the same bytes have the same clip ids: the first row counts.
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
        if reason == "rejected":
            detail = "somebody rejected this clip after sharding: run `recaption shard`"
        yield Problem(kind="dropped_clip_in_shard", where=where, detail=detail)
    if not run.exists(INDEX):
        return
    index = concat(opened.tables["index"].values(), schema_of(Sample))
    waiting = originals.filter(pc.equal(originals["state"], "waiting"))
    # Where the shard of an indexed clip is gone, that is reported once for the shard.
    waiting = waiting.filter(pc.invert(pc.is_in(waiting["clip_id"], value_set=_ids(index))))
    main = main_captions(captions)
    open_ids = set(main.filter(is_open(main))["clip_id"].to_pylist())
    with_caption = _ids(main.filter(pc.is_null(main["reason"])))
    in_shard = originals.filter(pc.equal(originals["state"], "in_shard"))
    lost = in_shard.filter(pc.invert(pc.is_in(in_shard["clip_id"], value_set=with_caption)))
    lost = lost.set_column(lost.schema.get_field_index("reason"), "reason", pa.array(["caption"] * lost.num_rows))
    waiting = pa.concat_tables([waiting, lost.cast(waiting.schema)]) if set_name is not None else waiting
    part_of = _parts_of(opened.tables["clips"], _ids(waiting))
    for row in waiting.to_pylist():
        if row["reason"] == "caption":
            if row["clip_id"] in open_ids:
                continue  # not lost: its endpoint gave no answer, and is asked again by the next run
            part = part_of[row["clip_id"]].replace("clips/", f"captions/{set_name}/", 1)
            if part not in captions_by_part and captions_by_part:
                continue  # reported once for the part
            where = f"{part}:{row['clip_id']}"
            detail = f"kept, but caption set {set_name!r} has no good caption of it although the shards are finished"
            yield Problem(kind="caption_missing", where=where, detail=detail)
        else:
            detail = "kept, with a good caption, but in no shard and not rejected although the shards are finished"
            yield Problem(kind="clip_missing_from_shards", where=row["clip_id"], detail=detail)
    if set_name is not None:
        yield from _check_caption_texts(run, set_name, index)


def _ids(table: pa.Table) -> pa.Array:
    return table["clip_id"].combine_chunks()


def _parts_of(clips: dict[str, pa.Table], clip_ids: pa.Array) -> dict[str, str]:
    """Clip id -> the first part of clips that has it."""
    parts: dict[str, str] = {}
    for name, table in clips.items() if len(clip_ids) else ():
        for clip_id in table["clip_id"].filter(pc.is_in(table["clip_id"], value_set=clip_ids)).to_pylist():
            parts.setdefault(clip_id, name)
    return parts


def _check_caption_texts(run: RunFolder, set_name: str, index: pa.Table) -> Iterator[Problem]:
    """Find samples whose caption differs from the caption set; one part of captions in memory at a time."""
    ids = _ids(index)
    for name in run.list(caption_set_pattern(set_name)):
        rows = main_captions(conform(run.read_table(name), TEXT_SCHEMA))
        rows = rows.filter(pc.is_null(rows["reason"]))
        position = pc.index_in(_ids(rows), value_set=ids)
        differs = pc.not_equal(index["caption"].combine_chunks().take(position), rows["text"].combine_chunks())
        for clip_id in _ids(rows).filter(pc.fill_null(differs, False)).to_pylist():
            detail = f"its caption in {name} is not the one in its shard; was it captioned again after sharding?"
            yield Problem(kind="caption_changed", where=f"{name}:{clip_id}", detail=detail)
