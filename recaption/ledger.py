"""The ledger: every input video, and every second of it, ends in exactly one state.

    ledger = account(run, thresholds)
    ledger.summary()["clips"]          # {"total": 18, "kept": 15, "dropped": {"blurry": 2, "no_bucket": 1}, ...}
    verify(run, thresholds)            # [] where the sums match, shards are whole and captions belong to their clips

States are asked of what lies in the run folder; nothing here is stored, so nothing here can go stale.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recaption.damage import (
    LATENT_MEMBERS,
    Problem,
    Rows,
    caption_problems,
    input_problems,
    mixed_recipes,
    open_parts,
    tar_problems,
    temporary_files,
    tiling_problems,
)
from recaption.duplicates import PAIRS_SCHEMA, read_pairs
from recaption.errors import DROP_REASONS
from recaption.filters import FilterThresholds, judge
from recaption.fingerprints import ClipFingerprint
from recaption.records import Caption, Clip, ClipPreview, ClipScores, Sample, Video, from_table, schema_of
from recaption.run_folder import RunFolder

CLIPS_SCHEMA = pa.schema([*schema_of(Clip), *(f for f in schema_of(ClipScores) if f.name != "clip_id")])
SHARD_SCHEMA = pa.schema([*schema_of(Sample), ("status", pa.string()), ("reason", pa.string())])
REJECTED = "shards/rejected.parquet"
"""Clips that no shard takes; its metadata names the caption set of the shards."""
REJECTED_SCHEMA = pa.schema([("clip_id", pa.string()), ("reason", pa.string())])
CAPTION_STATE_SCHEMA = pa.schema([schema_of(Caption).field(n) for n in ("clip_id", "source", "reason", "recipe_hash")])
INPUTS_SCHEMA = pa.schema([("uri", pa.string()), ("part", pa.int64())])

CLIP_STATES = ("in_shard", "waiting", "dropped", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipState:
    """Where one clip ended up."""

    clip_id: str
    uri: str
    seconds: float
    state: str
    """One of `CLIP_STATES`."""
    reason: str | None = None
    """dropped: of `DROP_REASONS`; failed: of `FAILURE_REASONS`; waiting: the stage that has not seen it, `caption` or
    `shard`."""
    shard: str | None = None
    """in_shard: the tar; its key there is the clip id."""
    duplicate_of: str | None = None
    """dropped as a duplicate: the clip that stays in its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """All videos and all clips of a run, each in one state."""

    videos: tuple[Video, ...]
    clips: tuple[ClipState, ...]
    num_waiting_inputs: int = 0
    """Inputs that `prepare` has listed and not reached."""

    def summary(self) -> dict[str, Any]:
        """The numbers that `--json` prints, JSON-simple.

        videos.total = ok + failed. clips.total = kept + all of dropped + all of failed, kept = in_shard + waiting.
        seconds.total = kept + dropped + failed, where failed holds the length of failed videos as far as it is known.
        """
        failed = [v for v in self.videos if v.status == "failed"]
        seconds: dict[str, list[float]] = {state: [] for state in CLIP_STATES}
        for clip in self.clips:
            seconds[clip.state].append(clip.seconds)
        return {
            "videos": {
                "total": len(self.videos),
                "ok": len(self.videos) - len(failed),
                "failed": len(failed),
                "waiting": self.num_waiting_inputs,
            },
            "clips": {
                "total": len(self.clips),
                "kept": len(seconds["in_shard"]) + len(seconds["waiting"]),
                "dropped": _count_reasons(self.clips, "dropped"),
                "failed": _count_reasons(self.clips, "failed"),
                "in_shard": len(seconds["in_shard"]),
                "waiting": _count_reasons(self.clips, "waiting"),
            },
            "seconds": {
                "total": math.fsum(v.duration_seconds for v in self.videos),
                "kept": math.fsum(seconds["in_shard"] + seconds["waiting"]),
                "dropped": math.fsum(seconds["dropped"]),
                "failed": math.fsum(seconds["failed"] + [v.duration_seconds for v in failed]),
            },
            "failures": [{"uri": v.uri, "reason": v.reason, "detail": v.detail} for v in failed],
            "clip_failures": [
                {"clip_id": c.clip_id, "uri": c.uri, "reason": c.reason} for c in self.clips if c.state == "failed"
            ],
        }


def _count_reasons(clips: Iterable[ClipState], state: str) -> dict[str, int]:
    return dict(sorted(Counter(str(c.reason) for c in clips if c.state == state).items()))


def account(run: RunFolder, thresholds: FilterThresholds, set_name: str | None = None) -> Ledger:
    """Ask the run folder, at whatever stage it is, for the state of everything.

    Args:
        set_name: caption set that decides `bad_caption`; default: the set that the shards were made with.
    """
    videos = from_table(run.read_tables("videos/part-*.parquet", schema_of(Video)), Video)
    clips = read_clips(run)
    captions = _caption_reasons(_read_captions(run, set_name or chosen_set(run)))
    shards = run.read_tables("shards/*/*.parquet", SHARD_SCHEMA)
    rejected = run.read_table(REJECTED) if run.exists(REJECTED) else None
    states = _clip_states(clips, thresholds, read_pairs(run), captions, shards, rejected)
    return Ledger(videos=tuple(videos), clips=tuple(states), num_waiting_inputs=len(_waiting_inputs(run, videos)))


def _committed_clips(run: RunFolder) -> list[str]:
    """Parts of clips whose part of videos is there: that one is written last and completes both."""
    committed = set(run.list("videos/part-*.parquet"))
    return [name for name in run.list("clips/part-*.parquet") if name.replace("clips/", "videos/", 1) in committed]


def read_clips(run: RunFolder) -> pa.Table:
    """Spans and scores of all clips; row i belongs to `Ledger.clips[i]`."""
    return _concat([run.read_table(name) for name in _committed_clips(run)], CLIPS_SCHEMA)


def _concat(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(table.select(schema.names).cast(schema) for table in tables)])


def chosen_set(run: RunFolder) -> str | None:
    """The caption set that the shards were made from; before there are shards the last by name; None without any."""
    sets = caption_sets(run)
    made_from = run.table_metadata(REJECTED).get("set") if run.exists(REJECTED) else None
    return made_from if made_from in sets else sets[-1] if sets else None


def _set_pattern(set_name: str) -> str:
    return f"captions/{set_name}/part-*.parquet"


def caption_sets(run: RunFolder) -> list[str]:
    """Names of the caption sets, sorted."""
    return sorted({name.split("/")[1] for name in run.list("captions/*/part-*.parquet")})


def _read_captions(run: RunFolder, set_name: str | None) -> pa.Table:
    if set_name is None:
        return CAPTION_STATE_SCHEMA.empty_table()
    return run.read_tables(_set_pattern(set_name), CAPTION_STATE_SCHEMA)


def _caption_reasons(captions: pa.Table) -> dict[str, str | None]:
    """clip_id -> None where a model wrote a good text about it, else why the text is bad.

    Texts that came with the video do not count: the captioner still has to see those clips.
    """
    reasons: dict[str, str | None] = {}
    for row in captions.to_pylist():
        if row["source"] == "model" and reasons.get(row["clip_id"], "") is not None:
            reasons[row["clip_id"]] = row["reason"]
    return reasons


def _waiting_inputs(run: RunFolder, videos: Iterable[Video]) -> list[str]:
    if not run.exists("inputs.parquet"):
        return []
    seen = {video.uri for video in videos}
    return [row["uri"] for row in run.read_table("inputs.parquet").to_pylist() if row["uri"] not in seen]


def _clip_states(
    clips: pa.Table,
    thresholds: FilterThresholds,
    pairs: pa.Table,
    captions: dict[str, str | None],
    shards: pa.Table,
    rejected: pa.Table | None,
) -> Iterator[ClipState]:
    """One state per row of `clips`. A verdict comes first: what the filters drop is dropped, wherever it lies."""
    in_shard = {row["clip_id"]: row["shard"] for row in shards.to_pylist() if row["status"] == "ok"}
    turned_away = {row["clip_id"]: row["reason"] for row in shards.to_pylist() if row["status"] == "failed"}
    turned_away |= {row["clip_id"]: row["reason"] for row in (rejected.to_pylist() if rejected is not None else ())}
    spans = clips.select(["clip_id", "uri", "start_seconds", "end_seconds"]).to_pylist()
    judged = judge(clips, thresholds, pairs)
    for row, verdict, original in zip(spans, judged.reasons, judged.duplicate_of, strict=True):
        clip_id = row["clip_id"]
        state, reason = "waiting", verdict
        if verdict is not None:
            state = "dropped"
        elif clip_id in in_shard:
            state = "in_shard"
        elif reason := turned_away.get(clip_id) or captions.get(clip_id):
            state = "dropped" if reason in DROP_REASONS else "failed"
        else:
            reason = "shard" if clip_id in captions else "caption"
        yield ClipState(
            clip_id=clip_id,
            uri=row["uri"],
            seconds=row["end_seconds"] - row["start_seconds"],
            state=state,
            reason=reason,
            shard=in_shard[clip_id] if state == "in_shard" else None,
            duplicate_of=original,
        )


# --- verify -----------------------------------------------------------------------------------------------------------


def verify(run: RunFolder, thresholds: FilterThresholds, set_name: str | None = None) -> list[Problem]:
    """Everything in the run folder that is not as it should be; [] where all is well.

    A stage that has not run, or was killed between two parts, is no damage; shards without an index are. Where a table
    does not open, checks that need it are left out: one broken file is one problem, not a thousand.
    """
    problems = list(temporary_files(run))
    stages = {
        "videos": ("videos/part-*.parquet", schema_of(Video)),
        "clips": ("clips/part-*.parquet", CLIPS_SCHEMA),
        "shards": ("shards/*/*.parquet", SHARD_SCHEMA),
        "rejected": (REJECTED, REJECTED_SCHEMA),
        "index": ("index.parquet", schema_of(Sample)),
        "inputs": ("inputs.parquet", INPUTS_SCHEMA),
        "fingerprints": ("fingerprints/part-*.parquet", pa.schema([schema_of(ClipFingerprint).field("clip_id")])),
        "duplicates": ("duplicates/*.parquet", PAIRS_SCHEMA),
        "previews": ("previews/part-*.parquet", pa.schema([schema_of(ClipPreview).field("clip_id")])),
        "latents": ("latents/*/*/*.parquet", SHARD_SCHEMA),
        "latents index": ("latents/*/index.parquet", schema_of(Sample)),
        **{f"captions/{s}": (_set_pattern(s), CAPTION_STATE_SCHEMA) for s in caption_sets(run)},
    }
    files: dict[str, dict[str, pa.Table]] = {}
    for stage, (pattern, schema) in stages.items():
        names = _committed_clips(run) if stage == "clips" else run.list(pattern)
        tables, unreadable = open_parts(run, names, schema)
        problems += unreadable
        if not unreadable:
            files[stage] = tables
            if not stage.startswith("latents") and stage != "duplicates":
                problems += mixed_recipes(run, tables)

    rows = {stage: _rows(tables) for stage, tables in files.items()}
    if "shards" in files:
        problems += _tar_files(run, "shards/*/*.tar", files["shards"], {})
        if "index" in files:
            problems += _index_problems(run, rows["shards"], rows["index"])
    if "latents" in files:
        problems += _tar_files(run, "latents/*/*/*.tar", files["latents"], None)
    if "videos" in rows and "clips" in rows:
        problems += tiling_problems(rows["videos"], rows["clips"])
    if "videos" in rows and "inputs" in rows:
        problems += input_problems(rows["inputs"], rows["videos"], finished=run.exists("index.parquet"))
    for stage in rows:
        if stage.startswith("captions/") and "clips" in rows:
            made_with = {name: run.table_metadata(name).get("recipe_hash", "") for name in files[stage]}
            problems += caption_problems(rows[stage], {row["clip_id"] for _, row in rows["clips"]}, made_with)
    if {"clips", "duplicates", "shards", "rejected", "index"} <= files.keys():
        set_name = set_name or chosen_set(run)
        captions = files.get(f"captions/{set_name}", {} if set_name is None else None)
        if captions is not None:
            problems += _state_problems(run, thresholds, set_name, files, captions)
    return problems


def _rows(tables: dict[str, pa.Table]) -> Rows:
    return [(name, row) for name, table in tables.items() for row in table.to_pylist()]


def _tar_files(
    run: RunFolder, pattern: str, tables: dict[str, pa.Table], keys: dict[str, str] | None
) -> Iterator[Problem]:
    """Every tar against its table, and the other way round. `keys`: see `tar_problems`; None = tars of latents."""
    tars = run.list(pattern)
    for name in sorted(set(tars) | {table.removesuffix(".parquet") + ".tar" for table in tables}):
        beside = name.removesuffix(".tar") + ".parquet"
        if beside not in tables:
            yield Problem(kind="shard_unlisted", where=name, detail="a tar without the table that says what is in it")
            continue
        rows = [row for row in tables[beside].to_pylist() if row["status"] == "ok"]
        if name in tars:
            sha256 = run.table_metadata(beside).get("tar_sha256", "")
            if keys is None:
                yield from tar_problems(run, name, rows, extensions=LATENT_MEMBERS, payload="npy", sha256=sha256)
            else:
                yield from tar_problems(run, name, rows, keys=keys, sha256=sha256)
        elif rows:
            detail = f"its table lists {len(rows)} samples, the tar is gone"
            yield Problem(kind="shard_missing", where=name, detail=detail)


def _index_problems(run: RunFolder, shards: Rows, index: Rows) -> Iterator[Problem]:
    """index.parquet is the good rows of all shard tables, nothing more."""
    listed = {(row["shard"], row["clip_id"]): row for _, row in shards if row["status"] == "ok"}
    if not run.exists("index.parquet"):
        if listed:
            detail = "there are shards and no index; run `recaption shard` again"
            yield Problem(kind="index_missing", where="index.parquet", detail=detail)
        return
    indexed = {(row["shard"], row["clip_id"]): row for _, row in index}
    if len(indexed) != len(index):
        yield Problem(kind="index_differs", where="index.parquet", detail="it has rows twice")
    tables = {name.removesuffix(".parquet") + ".tar" for name in run.list("shards/*/*.parquet")}
    gone = Counter(shard for shard, _ in indexed if shard not in tables)
    for shard, num_samples in sorted(gone.items()):
        detail = f"the index lists {num_samples} samples in it, its table is gone"
        yield Problem(kind="shard_missing", where=shard, detail=detail)
    for shard, clip_id in sorted(listed.keys() | {key for key in indexed if key[0] not in gone}):
        here, there = indexed.get((shard, clip_id)), listed.get((shard, clip_id))
        if here is None:
            detail = f"the table of {shard} has this sample, the index does not"
        elif there is None:
            detail = f"the table of {shard} does not have this sample"
        elif wrong := [key for key in here if here[key] != there[key]]:
            detail = f"{wrong[0]} is {here[wrong[0]]!r}, the table of {shard} has {there[wrong[0]]!r}"
        else:
            continue
        yield Problem(kind="index_differs", where=f"index.parquet:{clip_id}", detail=detail)


def _state_problems(
    run: RunFolder,
    thresholds: FilterThresholds,
    set_name: str | None,
    files: dict[str, dict[str, pa.Table]],
    captions: dict[str, pa.Table],
) -> Iterator[Problem]:
    """What the ledger says against what the shards hold."""
    clips = _concat(files["clips"].values(), CLIPS_SCHEMA)
    shards = _concat(files["shards"].values(), SHARD_SCHEMA)
    rejected = _concat(files["rejected"].values(), REJECTED_SCHEMA)
    pairs = _concat(files["duplicates"].values(), PAIRS_SCHEMA)
    texts = _concat(captions.values(), CAPTION_STATE_SCHEMA)
    states: dict[str, ClipState] = {}
    for clip in _clip_states(clips, thresholds, pairs, _caption_reasons(texts), shards, rejected):
        if clip.duplicate_of != clip.clip_id:  # the same bytes twice: the first row speaks for both
            states.setdefault(clip.clip_id, clip)
    for name, row in _rows(files["shards"]):
        where = f"{name}:{row['clip_id']}"
        if row["clip_id"] not in states:
            yield Problem(kind="unknown_clip_in_shard", where=where, detail="RUN/clips does not have this clip")
        elif row["status"] == "ok" and (state := states[row["clip_id"]]).state == "dropped":
            why = f"duplicate of {state.duplicate_of}" if state.duplicate_of else state.reason
            detail = f"the filters drop this clip ({why}); were thresholds changed after sharding?"
            yield Problem(kind="dropped_clip_in_shard", where=where, detail=detail)
    if not run.exists("index.parquet"):
        return
    indexed = {row["clip_id"] for _, row in _rows(files["index"])}
    for state in states.values():
        if state.clip_id in indexed or state.state != "waiting":
            continue  # where the shard of an indexed clip is gone, that is reported once for the shard
        if state.reason == "caption":
            detail = f"kept, and caption set {set_name!r} has no text for it although the shards are finished"
            yield Problem(kind="caption_missing", where=state.clip_id, detail=detail)
        else:
            detail = "kept, with a good caption, in no shard and not rejected although the shards are finished"
            yield Problem(kind="clip_missing_from_shards", where=state.clip_id, detail=detail)
