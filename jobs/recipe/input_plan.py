"""Assigns inputs to parts, once: neither a killed run nor more videos later change the numbers of existing parts.

    plan_inputs(run, find_inputs(["list.csv"]), part_size=16)      # RUN/inputs.parquet and RUN/listed are up to date

What is named and what the run knows already are two streams sorted by uri, so that memory does not grow with either. The
rows of a list are those that it has now, of the videos it names; what other lists say of them stays.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from jobs.recipe.inputs_table import iter_inputs, write_inputs
from recaption.inputs.lists.listed import ListedSpan
from recaption.inputs.paths import FoundInputs
from recaption.ledger.spans import (
    PARTS_PER_FILE,
    list_hash,
    listed_file,
    listed_rows,
    read_listed,
    write_listed,
)
from recaption.run_folder import RunFolder

Named = tuple[str, str, list[ListedSpan]]
"""(uri, why it cannot be an input, what lists say of it)."""


def plan_inputs(run: RunFolder, found: FoundInputs, part_size: int) -> None:
    """Write the list of inputs, with new ones in new parts after the last, and what lists say of them."""
    with _Plan(run, part_size) as plan:
        for uri, refusal, spans in _all_named(found):
            plan.add(uri, refusal, spans)
        plan.write()


def _all_named(found: FoundInputs) -> Iterator[Named]:
    """Everything that is named, each uri once, sorted."""
    loose: Iterator[Named] = (
        (uri, "" if uri in found.uris else found.refused[uri], []) for uri in sorted(found.uris | found.refused.keys())
    )
    merged = heapq.merge(loose, found.listed.videos() if found.listed else (), key=lambda one: one[0])
    for uri, group in itertools.groupby(merged, lambda one: one[0]):
        rows = list(group)
        spans = [span for row in rows for span in row[2]]
        yield uri, "" if any(not row[1] for row in rows) else rows[0][1], spans


class _Plan:
    """A temporary table of what the run knows and of what changes in it."""

    def __init__(self, run: RunFolder, part_size: int) -> None:
        self.run, self.part_size = run, part_size
        self.folder = tempfile.mkdtemp(prefix="recaption-plan-")
        self.database = sqlite3.connect(os.path.join(self.folder, "plan.sqlite"))
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-32000", "temp_store=FILE"):
            self.database.execute(f"PRAGMA {setting}")
        self.database.execute("CREATE TABLE known (uri TEXT, ordinal INTEGER, part INT, refusal TEXT, list_hash TEXT)")
        self.database.execute("CREATE TABLE changed (ordinal INTEGER PRIMARY KEY, refusal TEXT, list_hash TEXT)")
        self.database.execute("CREATE TABLE fresh (uri TEXT, part INT, refusal TEXT, list_hash TEXT)")
        self.database.execute("CREATE TABLE relisted (part INT, uri TEXT, rows TEXT)")
        rows = ((r["uri"], i, r["part"], r["refusal"], r["list_hash"]) for i, r in enumerate(iter_inputs(run)))
        self.database.executemany("INSERT INTO known VALUES (?, ?, ?, ?, ?)", rows)
        (last_part,) = self.database.execute("SELECT max(part) FROM known").fetchone()
        self.first_part = 0 if last_part is None else last_part + 1
        self.num_fresh = 0
        self.known = self.database.execute("SELECT uri, ordinal, part, refusal, list_hash FROM known ORDER BY uri")
        self.next_known = self.known.fetchone()
        self.listed_before: tuple[int, dict[str, list[ListedSpan]]] = (-1, {})
        """(part, what RUN/listed has of it)."""

    def __enter__(self) -> _Plan:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, uri: str, refusal: str, spans: list[ListedSpan]) -> None:
        """The next uri, in their order."""
        while self.next_known is not None and self.next_known[0] < uri:
            self.next_known = self.known.fetchone()
        if self.next_known is None or self.next_known[0] != uri:
            part = self.first_part + self.num_fresh // self.part_size
            self.num_fresh += 1
            self.database.execute("INSERT INTO fresh VALUES (?, ?, ?, ?)", (uri, part, refusal, list_hash(spans)))
            self._relist(part, uri, spans)
            return
        _, ordinal, part, refusal_before, hash_before = self.next_known
        if spans and hash_before:
            lists = {span.list_uri for span in spans}
            others = [span for span in self._listed(part).get(uri, ()) if span.list_uri not in lists]
            spans = sorted([*spans, *others], key=lambda span: (span.list_uri, span.row, span.position))
        hash_now = list_hash(spans) if spans else hash_before
        if (refusal, hash_now) != (refusal_before, hash_before):
            self.database.execute("INSERT INTO changed VALUES (?, ?, ?)", (ordinal, refusal, hash_now))
        if hash_now != hash_before:
            self._relist(part, uri, spans)

    def _relist(self, part: int, uri: str, spans: list[ListedSpan]) -> None:
        if spans:
            rows = json.dumps(listed_rows(part, spans), ensure_ascii=False)
            self.database.execute("INSERT INTO relisted VALUES (?, ?, ?)", (part, uri, rows))

    def _listed(self, part: int) -> dict[str, list[ListedSpan]]:
        """What RUN/listed has of a part; the parts come nearly in order."""
        if self.listed_before[0] != part:
            self.listed_before = (part, read_listed(self.run, part))
        return self.listed_before[1]

    def write(self) -> None:
        """Write what changed; the list of inputs last."""
        (num_changed,) = self.database.execute("SELECT count(*) FROM changed").fetchone()
        files = "SELECT part, uri, rows FROM relisted ORDER BY part, rowid"
        for _, group in itertools.groupby(self.database.execute(files), lambda row: row[0] // PARTS_PER_FILE):
            self._write_listed(list(group))
        if num_changed or self.num_fresh or not self.run.exists("inputs.parquet"):
            write_inputs(self.run, self._rows())

    def _write_listed(self, relisted: Iterable[tuple[int, str, str]]) -> None:
        """Replace what one file has of these videos; it stays sorted by part."""
        relisted = list(relisted)
        name = listed_file(relisted[0][0])
        new = {(part, uri) for part, uri, _ in relisted}
        rows = self.run.read_table(name).to_pylist() if self.run.exists(name) else []
        rows = [row for row in rows if (row["part"], row["uri"]) not in new and row["part"] < self.first_part]
        for _, _, spans in relisted:
            rows += json.loads(spans)
        write_listed(self.run, name, rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """All rows of the list of inputs: those that the run knows in their order, then the new ones."""
        query = (
            "SELECT known.uri, part, ifnull(changed.refusal, known.refusal), ifnull(changed.list_hash, known.list_hash) "
            "FROM known LEFT JOIN changed ON known.ordinal = changed.ordinal ORDER BY known.ordinal"
        )
        for rows in (self.database.execute(query), self.database.execute("SELECT * FROM fresh ORDER BY rowid")):
            for row in rows:
                yield dict(zip(("uri", "part", "refusal", "list_hash"), row, strict=True))
