"""Inputs with equal bytes: which of their names a video has.

    follow_renames(run, named)     # before planning: a new name takes the row of one that is gone
    choose_names(run)              # at the end: of equal bytes the first row gets the best name

Everywhere the first row of equal bytes is the video and later ones are its duplicates. Names change places between such
rows, which are equal in everything else. A name that exists is better than one that is gone, one with an original text
better than one without, one outside of backup folders better than one inside; else the first stays.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from jobs.recipe.inputs_table import iter_inputs, parts_of, read_inputs, write_inputs
from jobs.recipe.part_names import part_name, part_number
from recaption.errors import VideoError
from recaption.inputs.companions import is_companion_folder
from recaption.inputs.names import local_path
from recaption.inputs.open_input import InputState, local_state, open_input
from recaption.inputs.sidecars import has_sidecar
from recaption.run_folder import RunFolder, recipe_hash

NUM_THREADS = 8
"""That hash new files which may be renamed ones."""
STATE = [*InputState.__dataclass_fields__]
PART_FOLDERS = ("previews", "fingerprints", "spans", "clips", "videos")


def follow_renames(run: RunFolder, named: Collection[str]) -> dict[str, str]:
    """Give the row of a local video that is gone to a new name of the same bytes; returns old name -> new name.

    Only new files of the size of one that is gone are hashed.
    """
    known, there = _unlisted(run), {row["uri"] for row in iter_inputs(run) if row["uri"] in named}
    new = [uri for uri in sorted(named) if uri not in there and local_path(uri) is not None]
    gone: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for row in _videos(run) if new else ():
        if row["uri"] in known and _is_gone(row["uri"]):
            gone[row["num_bytes"]].append((row["video_id"], row["uri"]))
    sizes = {uri: state.num_bytes for uri in new if gone and (state := local_state(uri))}
    candidates = [uri for uri in new if sizes.get(uri) in gone]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        states = dict(zip(candidates, threads.map(_state_of, candidates), strict=True))
    renamed: dict[str, str] = {}
    for uri, state in states.items():
        for video_id, old in gone[sizes[uri]]:
            if old not in renamed and state is not None and state.video_id == video_id:
                renamed[old] = uri
                break
    _apply(run, renamed, {uri: state for uri, state in states.items() if state is not None})
    return renamed


def choose_names(run: RunFolder) -> dict[str, str]:
    """Let the best name of each video with several be that of its first row; returns old name -> new name of a row."""
    known = _unlisted(run)
    num_names = Counter(row["video_id"] for row in _videos(run, ["uri", "video_id"]) if row["uri"] in known)
    copies: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _videos(run) if any(count > 1 for count in num_names.values()) else ():
        if num_names[row["video_id"]] > 1 and row["uri"] in known:
            copies[row["video_id"]].append(row)
    renamed: dict[str, str] = {}
    states: dict[str, InputState] = {}
    for rows in copies.values():
        best = min(rows, key=lambda row: _rank(row["uri"]))  # of equally good ones the first
        if best is not rows[0]:
            renamed |= {rows[0]["uri"]: best["uri"], best["uri"]: rows[0]["uri"]}
            states |= {row["uri"]: InputState(**{name: row[name] for name in STATE}) for row in (rows[0], best)}
    _apply(run, renamed, states)
    return renamed


def _unlisted(run: RunFolder) -> set[str]:
    """Inputs of which no list says anything: rows of others are not equal, whatever their bytes."""
    return {row["uri"] for row in iter_inputs(run) if not row["list_hash"]}


def _rank(uri: str) -> tuple[bool, bool, bool]:
    is_backup = any(is_companion_folder(folder) for folder in uri.split("/")[:-1])
    return _is_gone(uri), not has_sidecar(uri), is_backup


def _is_gone(uri: str) -> bool:
    path = local_path(uri)
    return path is not None and not os.path.exists(path)


def _state_of(uri: str) -> InputState | None:
    try:
        with open_input(uri) as opened:
            return opened.state()
    except VideoError:
        return None


def _videos(run: RunFolder, columns: Sequence[str] = ("uri", *STATE)) -> Iterator[dict[str, Any]]:
    """Readable videos, in the order of parts and rows."""
    for name in run.list("videos/part-*.parquet"):
        for row in run.read_columns(name, ["status", *columns]).to_pylist():
            if row["status"] == "ok":
                yield row


def _apply(run: RunFolder, renamed: dict[str, str], states: dict[str, InputState]) -> None:
    """Rename rows: first in the list of inputs, so that a kill leaves parts that the next run computes with these names."""
    if not renamed:
        return
    rows = [row | {"uri": renamed.get(row["uri"], row["uri"])} for row in read_inputs(run)]
    before, after = parts_of(read_inputs(run)), parts_of(rows)
    write_inputs(run, rows)
    for name in run.list("videos/part-*.parquet"):
        number = part_number(name)
        if before.get(number) == after.get(number):
            continue
        inputs_hash = recipe_hash(after[number])
        for folder in PART_FOLDERS:
            file = part_name(folder, number)
            if folder == "spans" and not run.exists(file):
                continue
            table, metadata = run.read_table(file), run.table_metadata(file)
            if "uri" in table.column_names:
                table = _renamed(table, renamed, states if folder == "videos" else {})
            run.write_table(file, table, metadata | {"inputs_hash": inputs_hash})


def _renamed(table: pa.Table, renamed: dict[str, str], states: dict[str, InputState]) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        if row["uri"] in renamed:
            row["uri"] = renamed[row["uri"]]
            row |= asdict(states[row["uri"]]) if states else {}
    return pa.Table.from_pylist(rows, schema=table.schema.remove_metadata())
