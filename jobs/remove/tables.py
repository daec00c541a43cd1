"""Takes rows out of the tables of a run folder: every Parquet file with a clip, video or input in it, but those of tars.

Rows are found by the names of columns (`Targets.has_row`), not of files, so that no table can be forgotten. Metadata stays,
but for the hash of the inputs of a part: with the new one the part is finished, as if it had never had the others.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from jobs.recipe.part_names import part_number
from jobs.remove.targets import Targets
from recaption.ledger.removed import REMOVED
from recaption.run_folder import RunFolder, recipe_hash

INPUTS = "inputs.parquet"
WITH_TAR = re.compile(r"(shards/[^/]+|latents/[^/]+/[^/]+)/\d+\.parquet")
"""Tables that belong to a tar (jobs/remove/tars.py)."""
OF_PREPARE = re.compile(r"(videos|clips|previews|fingerprints|scores/[^/]+)/part-\d+\.parquet")
"""Tables whose metadata has the `inputs_hash` of their part."""


def remove_rows(run: RunFolder, targets: Targets) -> list[str]:
    """Rewrite the tables that have rows of the targets, the list of inputs first; returns their names."""
    changed = []
    names = run.list("**/*.parquet")
    for name in [INPUTS] * (INPUTS in names) + [name for name in names if name != INPUTS]:
        if not WITH_TAR.fullmatch(name) and name != REMOVED and _remove_from(run, name, targets):
            changed.append(name)
    _renew_hashes(run)
    return changed


def _remove_from(run: RunFolder, name: str, targets: Targets) -> bool:
    table = run.read_table(name)
    is_theirs = targets.has_row(table)
    if is_theirs is None or not pc.any(is_theirs).as_py():
        return False
    run.write_table(name, table.filter(pc.invert(is_theirs)), run.table_metadata(name))
    return True


def _renew_hashes(run: RunFolder) -> None:
    """Give each part of `prepare` the hash of the inputs that it has now."""
    if not run.exists(INPUTS):
        return
    inputs = run.read_columns(INPUTS, ["uri", "part"])
    uris: dict[int, list[str]] = {}
    for uri, part in zip(inputs["uri"].to_pylist(), inputs["part"].to_pylist(), strict=True):
        uris.setdefault(part, []).append(uri)
    for name in run.list("**/part-*.parquet"):
        if OF_PREPARE.fullmatch(name):
            metadata = run.table_metadata(name)
            number = part_number(name)
            renewed = metadata | {"inputs_hash": recipe_hash(uris.get(number, []))}
            if renewed != metadata and _rows_are(run, number, uris.get(number, [])):
                run.write_table(name, run.read_table(name), renewed)


def _rows_are(run: RunFolder, number: int, uris: list[str]) -> bool:
    """Whether a part has exactly the rows of these inputs: one that waits for new inputs keeps its hash."""
    name = f"videos/part-{number:05d}.parquet"
    rows: pa.Table = (
        run.read_columns(name, ["uri"]) if run.exists(name) else pa.table({"uri": pa.array([], pa.string())})
    )
    return bool(rows["uri"].to_pylist() == uris)
