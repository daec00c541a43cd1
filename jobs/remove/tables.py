"""Takes rows out of the tables of a run folder: every Parquet file with a clip, video or input in it, but those of tars.

Rows are found by the names of columns (`Targets.has_row`), not of files, so that no table can be forgotten. Metadata stays,
but for the hashes of a part's inputs: with the new ones it is finished, as if it had never had the others.
"""

from __future__ import annotations

import re

import pyarrow.compute as pc

from jobs.recipe.inputs_table import INPUTS, parts_of, read_inputs
from jobs.recipe.part_names import part_name, part_number
from jobs.remove.targets import Targets
from recaption.ledger.removed import REMOVED
from recaption.run_folder import RunFolder, recipe_hash

WITH_TAR = re.compile(r"(shards/[^/]+|latents/[^/]+/[^/]+)/\d+\.parquet")
"""Tables that belong to a tar (jobs/remove/tars.py)."""
FOLDERS_OF_PARTS = ("previews", "fingerprints", "spans", "clips", "videos")


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
    """Give the parts of `prepare` the hashes of the inputs that they have now, the file that commits them last."""
    listed = parts_of(read_inputs(run))
    for part in run.list("videos/part-*.parquet"):
        number, videos = part_number(part), run.read_columns(part, ["uri", "video_id"])
        hashes = {"bytes_hash": recipe_hash(videos["video_id"].to_pylist())}
        if videos["uri"].to_pylist() == listed.get(number, []):  # one that waits for new inputs keeps its hash
            hashes["inputs_hash"] = recipe_hash(listed.get(number, []))
        names = [part_name(folder, number) for folder in FOLDERS_OF_PARTS]
        names += [name for name in run.list("scores/*/part-*.parquet") if part_number(name) == number]
        for name in sorted(names, key=lambda one: one == part):
            metadata = run.table_metadata(name) if run.exists(name) else {}
            renewed = {key: value for key, value in hashes.items() if key in metadata}
            if not renewed.items() <= metadata.items():
                run.write_table(name, run.read_table(name), metadata | renewed)
