"""What a removal takes out: the videos of a list, all of their names, clips and texts.

    names = read_names("takedown.txt")              # uris, video ids and clip ids, in any mixture
    targets = find_targets(run, names, recipe)      # every input with these bytes, its clips, the texts that only they have

Targets are written into the run folder (`removed.UNFINISHED`) before anything is removed, so that a removal that was
killed knows what it was taking out, although half of the tables no longer say so.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.prepare.verdicts import read_table_file
from jobs.recipe.settings import Recipe
from recaption.captions.sets import caption_sets
from recaption.dedup.near_duplicates import read_pairs
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger
from recaption.ledger.removed import UNFINISHED, key_of, read_removed
from recaption.run_folder import RunFolder

VIDEO_ID = re.compile(r"[0-9a-f]{16}")
CLIP_ID = re.compile(r"([0-9a-f]{16})-\d{7}-\d{7}")
NAME_COLUMNS = ("clip_id", "video_id", "uri", "path", "url", "video", "file")
"""Columns of a table that names what to remove; all that are there are read."""
ID_CHARACTERS = 16
VIDEO_COLUMNS = ("uri", "video_id", "status", "duration_seconds", "truncated_seconds")


@dataclass
class Targets:
    """What is taken out of a run."""

    video_ids: list[str] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)
    """Of all inputs with these bytes."""
    texts: list[str] = field(default_factory=list)
    """Captions and original texts that only these videos have, without spaces at their ends."""
    near_copies: list[str] = field(default_factory=list)
    """Ids of other clips that were dropped as duplicates of theirs."""
    similar_uris: list[str] = field(default_factory=list)
    """Other videos with clips that look like theirs."""
    current_shards: list[str] = field(default_factory=list)
    """Shards, without extension, that were up to date before."""

    def merged(self, other: Targets) -> Targets:
        mine, others = asdict(self), asdict(other)
        return Targets(**{name: sorted({*values, *others[name]}) for name, values in mine.items()})

    def has_clip(self, clip_ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which of these clips are of the videos."""
        starts = pc.utf8_slice_codeunits(clip_ids, 0, ID_CHARACTERS)
        return pc.is_in(starts, value_set=pa.array(self.video_ids, pa.string()))

    def has_row(self, table: pa.Table) -> pa.ChunkedArray | None:
        """Which rows of any table of a run are about the videos; None for a table without names."""
        found = [
            self.has_clip(table[name]) for name in ("clip_id", "clip_id_a", "clip_id_b") if name in table.column_names
        ]
        for name, values in (("video_id", self.video_ids), ("uri", self.uris)):
            if name in table.column_names:
                found.append(pc.is_in(table[name], value_set=pa.array(values, pa.string())))
        if not found:
            return None
        result = found[0]
        for one in found[1:]:
            result = pc.or_kleene(result, one)
        return pc.fill_null(result, False)


def read_names(file: str) -> list[str]:
    """The uris, video ids and clip ids in a file: one a line, or in the columns of a table.

    Raises:
        UsageError: no such file, or nothing in it.
    """
    import fsspec

    names: list[str] = []
    if file.lower().endswith((".csv", ".tsv", ".parquet", ".jsonl", ".json")):
        table = read_table_file(file).reset_index()
        columns = [name for name in NAME_COLUMNS if name in table.columns]
        if not columns:
            known = ", ".join(map(str, table.columns))
            raise UsageError(
                f"--remove {file}: it has none of the columns {', '.join(NAME_COLUMNS)} (columns: {known})"
            )
        names = [str(value) for column in columns for value in table[column].dropna()]
    else:
        fs, path = fsspec.url_to_fs(file)
        if not fs.isfile(path):
            raise UsageError(f"--remove {file}: no such file")
        names = fs.cat_file(path).decode("utf-8-sig", errors="surrogateescape").splitlines()
    names = list(dict.fromkeys(name.strip() for name in names if name.strip() and not name.lstrip().startswith("#")))
    if not names:
        raise UsageError(f"--remove {file}: it names nothing")
    return names


def read_unfinished(run: RunFolder) -> Targets:
    """The targets of a removal that was killed."""
    return Targets(**json.loads(run.read_bytes(UNFINISHED))) if run.exists(UNFINISHED) else Targets()


def find_targets(run: RunFolder, names: list[str], recipe: Recipe) -> tuple[Targets, list[dict[str, Any]]]:
    """(what these names stand for, the rows of RUN/videos and inputs that go).

    Raises:
        UsageError: a name that this run neither has nor had.
    """
    rows = _input_rows(run)
    by_uri: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_uri.setdefault(row["uri"], []).append(row)
    ids = {row["video_id"] for row in rows} - {""}
    unfinished, removed = read_unfinished(run), read_removed(run)
    gone = {*removed.table["uri_key"].to_pylist(), *removed.video_keys} - {""}
    video_ids, uris, unknown = set(), set(), []
    for name in names:
        match = CLIP_ID.fullmatch(name)
        video_id = match[1] if match else name
        uri = next((one for one in (name, os.path.abspath(name)) if one in by_uri), None)
        if uri is not None:
            uris.add(uri)
            video_ids |= {row["video_id"] for row in by_uri[uri]} - {""}
        elif video_id in ids:
            video_ids.add(video_id)
        elif not {key_of(name), key_of(os.path.abspath(name)), key_of(video_id)} & gone:
            unknown.append(name)
    if unknown:
        raise UsageError(
            f"--remove: {len(unknown)} of {len(names)} entries are not in {run.uri}, such as {unknown[0]!r}: an entry is "
            "the uri of an input (RUN/videos), a video id, or a clip id, which stands for its whole video"
        )
    uris |= {row["uri"] for row in rows if row["video_id"] in video_ids}
    targets = Targets(sorted(video_ids), sorted(uris)).merged(unfinished)
    targets = targets.merged(Targets(texts=_own_texts(run, targets)))
    going = [row for row in rows if row["uri"] in uris]
    return targets.merged(_copies(run, targets, recipe)), going


def _input_rows(run: RunFolder) -> list[dict[str, Any]]:
    """uri, video_id, status, duration_seconds and num_clips of every input; of those without a row only the uri."""
    rows: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for name in run.list("clips/part-*.parquet"):
        for uri in run.read_columns(name, ["uri"])["uri"].to_pylist():
            counts[uri] = counts.get(uri, 0) + 1
    for name in run.list("videos/part-*.parquet"):
        for row in run.read_columns(name, [*VIDEO_COLUMNS]).to_pylist():
            rows.append(row | {"duration_seconds": row["duration_seconds"] + row.pop("truncated_seconds")})
    listed = run.read_columns("inputs.parquet", ["uri"])["uri"].to_pylist() if run.exists("inputs.parquet") else []
    missing = {"video_id": "", "status": "waiting", "duration_seconds": 0.0}
    rows += [{"uri": uri, **missing} for uri in sorted({*listed} - {row["uri"] for row in rows})]
    return [{**row, "num_clips": counts.get(row["uri"], 0)} for row in rows]


def _own_texts(run: RunFolder, targets: Targets) -> list[str]:
    """Texts of the targets' clips that no other clip has."""
    own: set[str] = set()
    parts = [name for one in caption_sets(run) for name in run.list(f"captions/{one}/part-*.parquet")]
    tables = [(name, "text") for name in parts] + [(name, "caption") for name in run.list("shards/*/*.parquet")]
    for is_theirs in (True, False):
        for name, column in tables:
            table = run.read_columns(name, ["clip_id", column])
            theirs = targets.has_clip(table["clip_id"])
            texts = table[column].filter(theirs if is_theirs else pc.invert(theirs)).to_pylist()
            texts = {text.strip() for text in texts if text}
            own = own | texts if is_theirs else own - texts
    return sorted(own - {""})


def _copies(run: RunFolder, targets: Targets, recipe: Recipe) -> Targets:
    """Clips that were dropped as duplicates of the targets', and all videos that look like theirs."""
    states = build_ledger(run, recipe.filters).clip_table
    is_theirs = targets.has_clip(states["clip_id"])
    is_copy = pc.and_(pc.fill_null(targets.has_clip(states["duplicate_of"]), False), pc.invert(is_theirs))
    pairs = read_pairs(run)
    pairs = pairs.filter(pc.greater(pairs["similarity"], recipe.filters.max_duplicate_similarity or 0.86))
    pairs = pairs.filter(pc.equal(pairs["kind"], "perceptual"))
    both = [(pairs["clip_id_a"], pairs["clip_id_b"]), (pairs["clip_id_b"], pairs["clip_id_a"])]
    similar = {clip_id for mine, other in both for clip_id in other.filter(targets.has_clip(mine)).to_pylist()}
    is_similar = pc.and_(
        pc.is_in(states["clip_id"], value_set=pa.array(sorted(similar), pa.string())), pc.invert(is_theirs)
    )
    return Targets(
        near_copies=sorted({*states["clip_id"].filter(is_copy).to_pylist()}),
        similar_uris=sorted({*states["uri"].filter(pc.or_(is_similar, is_copy)).to_pylist()}),
    )
