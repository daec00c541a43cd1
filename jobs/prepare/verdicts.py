"""`recaption prepare --out RUN --verdicts FILE`: takes in what people decided on clips, as a new part of RUN/verdicts.

    clip_id,verdict,reason,by                              (CSV, Parquet or JSON Lines, as pandas writes them)
    00c0ffee00c0ffee-0000000-0000048,reject,blurry face,ana

Only `clip_id` and `verdict` are required. Nothing is recomputed: filters read the verdicts, as they read the scores.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa

from jobs.recipe.part_names import part_name, part_number
from jobs.recipe.settings import Recipe
from recaption.errors import UsageError
from recaption.ledger.ledger import build_ledger, read_clips
from recaption.ledger.removed import read_removed
from recaption.ledger.verdicts import VERDICT_PARTS, VERDICT_SCHEMA, VERDICTS, read_verdicts
from recaption.run_folder import RunFolder, recipe_hash

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")


def import_verdicts(run: RunFolder, recipe: Recipe, file: str) -> dict[str, Any]:
    """Add the verdicts of a file that differ from those that hold now.

    Raises:
        UsageError: unreadable, without the columns, an unknown verdict, or clips that this run does not have.
    """
    rows = _parsed(read_table_file(file), file)
    removed = read_removed(run)
    known = set(read_clips(run)["clip_id"].to_pylist())
    taken_out = [row for row in rows if removed.has_video(row["clip_id"].partition("-")[0])]
    rows = [row for row in rows if not removed.has_video(row["clip_id"].partition("-")[0])]
    if unknown := [row["clip_id"] for row in rows if row["clip_id"] not in known]:
        raise UsageError(
            f"--verdicts {file}: {len(unknown)} of {len(rows)} clips are not in {run.uri}, such as {unknown[0]!r} "
            f"(its clip ids are in {run.uri}/clips, or `recaption.open_run({run.uri!r}).clips()`)"
        )
    added = add_part(run, rows)
    now = read_verdicts(run)
    sums = build_ledger(run, recipe.filters).summary()
    return {
        "verdicts": dict(sorted(Counter(now["verdict"].to_pylist()).items())),
        "new_verdicts": added,
        **({"of_removed_videos": len(taken_out)} if taken_out else {}),
        **{key: sums[key] for key in ("videos", "clips", "seconds")},
    }


def add_part(run: RunFolder, rows: Sequence[dict[str, Any]]) -> int:
    """Write the rows that change something as the next part; returns their number. The same rows again add nothing.

    Args:
        rows: columns of `VERDICT_SCHEMA`; of several on a clip the last one counts.
    """
    before = {row["clip_id"]: _decision(row) for row in read_verdicts(run).to_pylist()}
    last = last_rows(rows)
    new = [row for row in last if _decision(row) != before.get(row["clip_id"], _decision({"verdict": "none"}))]
    if new:
        numbers = [part_number(name) for name in run.list(VERDICT_PARTS)]
        table = pa.Table.from_pylist(new, schema=VERDICT_SCHEMA)
        decisions = [(row["clip_id"], *_decision(row)) for row in new]
        name = part_name("verdicts", max(numbers, default=-1) + 1)
        run.write_table(name, table, {"recipe_hash": "", "inputs_hash": recipe_hash(decisions)})
    return len(new)


def last_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each clip the last row, by clip id."""
    last = {row["clip_id"]: row for row in rows}
    return [last[clip_id] for clip_id in sorted(last)]


def _decision(row: dict[str, Any]) -> tuple[str, str, str]:
    """What of a verdict counts as a difference; when it was said does not."""
    return (
        (row["verdict"], row.get("reason") or "", row.get("by") or "") if row["verdict"] != "none" else ("none", "", "")
    )


def read_table_file(file: str) -> pd.DataFrame:
    """A CSV, TSV, Parquet or JSON (Lines) file; every column but those of Parquet as text.

    Raises:
        UsageError: no such file, of another kind, or not readable as what its name says.
    """
    fs, path = fsspec.url_to_fs(file)
    suffix = posixpath.splitext(path)[1].lower()
    if suffix not in TABLES:
        raise UsageError(f"{file}: a table is one of {', '.join('*' + s for s in TABLES)}")
    try:
        content = io.BytesIO(fs.cat_file(path))
        if suffix in (".csv", ".tsv"):
            return pd.read_csv(content, sep="\t" if suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
        if suffix == ".parquet":
            return pd.read_parquet(content)
        text = content.getvalue().decode("utf-8-sig")
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(x) for x in text.splitlines() if x.strip()]
        )
        return pd.DataFrame(rows)
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UsageError(f"{file}: not readable as {suffix[1:]}: {' '.join(str(error).split())[:200]}") from error


def _parsed(table: pd.DataFrame, file: str) -> list[dict[str, Any]]:
    """Rows with the columns of `VERDICT_SCHEMA`; further columns are left out."""
    if table.index.name == "clip_id" or "clip_id" in table.index.names:
        table = table.reset_index()
    for column in ("clip_id", "verdict"):
        if column not in table.columns:
            raise UsageError(f"--verdicts {file}: it has no column {column!r} (columns: {', '.join(map(str, table))})")
    now = datetime.now(UTC)
    rows = []
    for number, row in enumerate(table.to_dict("records"), start=1):
        values = {name: "" if _is_empty(row.get(name)) else row[name] for name in VERDICT_SCHEMA.names}
        verdict = str(values["verdict"]).strip().lower()
        if verdict not in VERDICTS:
            raise UsageError(
                f"--verdicts {file}, row {number}: verdict {verdict!r} is not one of {', '.join(VERDICTS)}"
            )
        texts = {name: str(values[name]).strip() for name in ("clip_id", "reason", "by")}
        rows.append(
            {**texts, "verdict": verdict, "time": _time(values["time"], file, number) if values["time"] else now}
        )
    return rows


def _is_empty(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def _time(value: Any, file: str, number: int) -> datetime:
    """A time as text, or as the milliseconds since 1970 that pandas writes into JSON; without a zone it is UTC."""
    try:
        stamp = (
            pd.to_datetime(value, unit="ms", utc=True) if isinstance(value, int) else pd.to_datetime(value, utc=True)
        )
        return stamp.floor("us").to_pydatetime(warn=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"--verdicts {file}, row {number}: time {value!r} is not a time ({error})") from None
