"""Reads example captions of a run folder, whose style expanded prompts follow."""

from __future__ import annotations

import hashlib
import re

import pyarrow.compute as pc

from recaption.captions.sets import caption_set_pattern, default_caption_set
from recaption.captions.words import first_words
from recaption.prompts.style import Example
from recaption.records import Caption, conform, from_table, schema_of
from recaption.run_folder import RunFolder

MAX_EXAMPLES = 2000
"""Most captions that are read as examples."""
MAX_PARTS = 64
"""Most files of a caption set that are read, evenly spaced."""
PROMPT_WORDS = 8
"""Where a clip has no short caption, this many first words of its caption stand in for a user prompt."""


def read_examples(run: RunFolder, set_name: str = "", *, limit: int = MAX_EXAMPLES) -> list[Example]:
    """Example captions of a set, selected by the hash of their clip ids: a uniform and reproducible subset.

    Args:
        set_name: "": the caption set of the shards.
    """
    set_name = set_name or default_caption_set(run) or ""
    captions: dict[str, str] = {}
    short_captions: dict[str, str] = {}
    names = run.list(caption_set_pattern(set_name)) if set_name else []
    if len(names) > MAX_PARTS:
        names = [names[i * len(names) // MAX_PARTS] for i in range(MAX_PARTS)]
    for name in names:
        table = conform(run.read_table(name), schema_of(Caption))
        is_whole_clip = pc.and_(pc.is_null(table["reason"]), pc.equal(table["window"], 0))
        for row in from_table(table.filter(is_whole_clip), Caption):
            if row.is_main:
                captions[row.clip_id] = row.text
            elif row.kind == "short":
                short_captions[row.clip_id] = row.text
    chosen = sorted(captions, key=lambda clip_id: hashlib.sha256(clip_id.encode()).digest())[:limit]
    return [
        Example(short_captions.get(clip_id) or _first_words(captions[clip_id]), captions[clip_id]) for clip_id in chosen
    ]


def _first_words(caption: str) -> str:
    """Up to `PROMPT_WORDS` words of the first clause, lower case."""
    clause = re.split(r"[,.;:!?，。；：！？、؛،।۔]", caption, maxsplit=1)[0]
    return first_words(clause, PROMPT_WORDS).lower()
