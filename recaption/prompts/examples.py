"""Captions of a run folder as examples of the style that prompts are rewritten in."""

from __future__ import annotations

import hashlib
import re

import pyarrow.compute as pc

from recaption.captions.sets import chosen_set, set_pattern
from recaption.prompts.style import Example
from recaption.records import Caption, conform, from_table, schema_of
from recaption.run_folder import RunFolder

MAX_EXAMPLES = 2000
"""Captions that a style is learned from."""


MAX_PARTS = 64
"""Files of a caption set that they are read from, evenly spread."""


PROMPT_WORDS = 8
"""Of a caption without a short one beside it, as many first words stand for what a user would have typed."""


def read_examples(run: RunFolder, set_name: str = "", *, limit: int = MAX_EXAMPLES) -> list[Example]:
    """Captions of a set, by the hash of their clips: evenly over the set, and the same ones each time.

    Args:
        set_name: "" = the set that the shards were made from.
    """
    set_name = set_name or chosen_set(run) or ""
    captions: dict[str, str] = {}
    shorts: dict[str, str] = {}
    parts = run.list(set_pattern(set_name)) if set_name else []
    for name in (parts[i * len(parts) // MAX_PARTS] for i in range(MAX_PARTS)) if len(parts) > MAX_PARTS else parts:
        table = conform(run.read_table(name), schema_of(Caption))
        is_of_clip = pc.and_(pc.is_null(table["reason"]), pc.equal(table["window"], 0))
        for row in from_table(table.filter(is_of_clip), Caption):
            if row.is_main:
                captions[row.clip_id] = row.text
            elif row.kind == "short":
                shorts[row.clip_id] = row.text
    chosen = sorted(captions, key=lambda clip_id: hashlib.sha256(clip_id.encode()).digest())[:limit]
    return [Example(shorts.get(clip_id) or _as_prompt(captions[clip_id]), captions[clip_id]) for clip_id in chosen]


def _as_prompt(caption: str) -> str:
    clause = re.split(r"[,.;:!?]", caption, maxsplit=1)[0].split()[:PROMPT_WORDS]
    return " ".join(clause).lower()
