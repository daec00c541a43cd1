"""What of a finished part has to be read again: inputs whose bytes changed, or that could not be fetched.

    changes = find_changes(run, number, inputs, stage_hash)
    changes.uris                # [] : the part is as it would be computed now

An input counts as changed where its stat (a remote one: its etag) is not the recorded one; the worker then hashes it, and
keeps its rows if the bytes are the same. What is gone keeps its rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from jobs.recipe.inputs_table import iter_inputs, write_inputs
from jobs.recipe.part_names import part_name
from recaption.errors import PASSING_REASONS
from recaption.inputs.download import current_etag
from recaption.inputs.names import local_path
from recaption.inputs.open_input import InputState, local_state
from recaption.inputs.page_videos import PAGE_ETAG
from recaption.inputs.paths import FoundInputs
from recaption.run_folder import RunFolder, recipe_hash

NUM_THREADS = 16
"""Stats of network file systems and etags take milliseconds each."""
COLUMNS = ("uri", "status", "reason", "list_hash", *InputState.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class PartChanges:
    """The state of a part of `prepare`."""

    uris: list[str] = field(default_factory=list)
    """Inputs to be read again, those without a row included."""
    relisted: list[str] = field(default_factory=list)
    """Inputs of which lists say something else than they did."""
    is_other_list: bool = False
    """The part was made of other inputs, or in another order."""
    absent_scores: dict[str, str] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return not self.uris and not self.relisted and not self.is_other_list


def find_changes(
    run: RunFolder, number: int, inputs: Sequence[Mapping[str, Any]], stage_hash: str
) -> PartChanges | None:
    """What changed since a part was computed; None where nothing of it can be kept.

    Args:
        inputs: its rows of the list of inputs.
    """
    name = part_name("videos", number)
    if not run.exists(name):
        return None
    metadata = run.table_metadata(name)
    if metadata.get("recipe_hash") != stage_hash:
        return None
    rows = {row["uri"]: row for row in run.read_columns(name, [*COLUMNS]).to_pylist()}
    uris = [one["uri"] for one in inputs]
    relisted = [
        one["uri"] for one in inputs if one["uri"] in rows and rows[one["uri"]]["list_hash"] != one["list_hash"]
    ]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        changed = threads.map(_Etags().is_changed, [rows.get(uri) for uri in uris])
        return PartChanges(
            uris=[uri for uri, is_changed in zip(uris, changed, strict=True) if is_changed],
            relisted=relisted,
            is_other_list=metadata.get("inputs_hash") != recipe_hash(uris),
            absent_scores=dict(json.loads(metadata.get("absent_scores", "{}"))),
        )


class _Etags:
    """Current etags; a host that does not answer is asked once."""

    def __init__(self) -> None:
        self.silent: set[str] = set()

    def is_changed(self, row: dict[str, Any] | None) -> bool:
        """Whether an input has to be read again, by its row in RUN/videos."""
        if row is None or row["reason"] in PASSING_REASONS:
            return True
        before = InputState(**{name: row[name] for name in InputState.__dataclass_fields__})
        if local_path(row["uri"]) is not None:
            now = local_state(row["uri"])
            return now is not None and not before.has_same_stat(now)
        if before.etag.startswith(PAGE_ETAG):
            return False
        host = "/".join(urlsplit(row["uri"])[:2])
        if host in self.silent:
            return False
        etag = current_etag(row["uri"])
        if etag is None:
            self.silent.add(host)
        return bool(etag) and etag != before.etag


def forget_refusals(run: RunFolder, found: FoundInputs) -> None:
    """Take folders off the list of inputs that could not be read once, and can now, or are gone."""
    refused = {row["uri"] for row in iter_inputs(run) if row["refusal"]}
    named = refused & {*found.uris, *found.refused}
    gone = {uri for uri in refused - named if not _is_unreadable_folder(uri)}
    if gone:
        write_inputs(run, (row for row in iter_inputs(run) if row["uri"] not in gone))


def _is_unreadable_folder(uri: str) -> bool:
    """True also for what is no local folder: that stays refused."""
    path = local_path(uri)
    if path is None or "#row=" in uri:
        return True
    try:
        with os.scandir(path):
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True
