"""Scores of own scorers beside a part of clips: RUN/scores/<plug-in>/part-*.parquet, written before it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from jobs.prepare.earlier_part import PreparedVideo
from jobs.recipe.part_names import part_name
from recaption.quality.plugins import Plugin
from recaption.run_folder import RunFolder


def has_scores_of(run: RunFolder, number: int, plugins: Sequence[Plugin]) -> bool:
    """Whether a part was scored by these plug-ins, in their version of now, with the bytes that its inputs had then."""
    bytes_hash = run.table_metadata(part_name("videos", number)).get("bytes_hash", "") if plugins else ""
    for plugin in plugins:
        name = part_name(f"scores/{plugin.name}", number)
        expected = {"recipe_hash": plugin.hash, "bytes_hash": bytes_hash}
        if not expected.items() <= _metadata(run, name).items():
            return False
    return True


def write_scores(
    run: RunFolder, number: int, plugins: Sequence[Plugin], prepared: Sequence[PreparedVideo], bytes_hash: str
) -> None:
    """Write one table per plug-in: rows of the clips that were scored now, and for the others those of before."""
    clip_ids = [row["clip_id"] for one in prepared for row in one.clips]
    for plugin in plugins:
        name = part_name(f"scores/{plugin.name}", number)
        rows: dict[str, dict[str, Any]] = {}
        if _metadata(run, name).get("recipe_hash") == plugin.hash:
            rows = {row["clip_id"]: row for row in run.read_table(name).to_pylist()}
        rows |= {row["clip_id"]: row for one in prepared for owner, row in one.plugin_rows if owner == plugin.name}
        table = pa.Table.from_pylist([rows[clip_id] for clip_id in clip_ids], schema=plugin.schema)
        run.write_table(name, table, {"recipe_hash": plugin.hash, "bytes_hash": bytes_hash})


def _metadata(run: RunFolder, name: str) -> dict[str, str]:
    """Metadata of a table; {} if it is missing or damaged."""
    try:
        return run.table_metadata(name)
    except (FileNotFoundError, pa.ArrowException):
        return {}
