"""Captions that are open: their endpoint gave no answer, and the next run of the same command asks again.

num_open(run, "main")           # {"captions/main/part-00003.parquet": 2}
open_warnings(run)              # ["2 clips of caption set main got no answer; ..."]
"""

from __future__ import annotations

from recaption.captions.sets import caption_set_pattern, caption_sets
from recaption.run_folder import RunFolder

NUM_OPEN = "num_open"
"""Metadata of a part of captions: its clips with an open caption (`captions.text.PASSING_FAULTS`)."""


def num_open(run: RunFolder, set_name: str) -> dict[str, int]:
    """Part of a caption set -> its clips with an open caption; parts without any are left out."""
    counts = {name: int(run.table_metadata(name).get(NUM_OPEN, 0)) for name in run.list(caption_set_pattern(set_name))}
    return {name: count for name, count in counts.items() if count}


def open_warnings(run: RunFolder) -> list[str]:
    """One sentence for each caption set that has open captions."""
    counts = {set_name: sum(num_open(run, set_name).values()) for set_name in caption_sets(run)}
    return [
        f"{count} clip{'s' * (count > 1)} of caption set {set_name} got no answer; `recaption caption --set {set_name}` "
        "with the same settings, or verify --repair, asks again"
        for set_name, count in counts.items()
        if count
    ]
