"""The order in which `verify --repair` heals a run folder: never from a stage that is not whole yet.

listed -> inputs -> videos clips previews fingerprints spans -> perceptual pairs -> captions embeddings
       -> semantic pairs, repeated captions
       -> shards, their index and rejects -> latents and encoded texts

stage_of(problem)                                   # "captions/main"
open_sources("shards", {"captions/main"}, ...)      # {"captions/main"}: shards wait, or they would lose clips
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from recaption.captions.sets import REJECTED_CLIPS
from recaption.dedup.near_duplicates import PERCEPTUAL_PAIRS, caption_set_of
from recaption.ledger.problems import Problem

FILES_OF_PARTS = ("videos", "clips", "previews", "fingerprints", "spans")
"""Folders of the files that `prepare` writes per part; each is a stage here, as later ones need some of them only."""


def stage_of(problem: Problem) -> str:
    """What is damaged: `inputs`, `clips`, `captions/<set>`, `semantic/<set>`, `shards`, `latents/<compressor>`, ..."""
    name, _, row = problem.where.partition(":")
    folder, _, rest = name.partition("/")
    if name == "inputs.parquet":
        return "videos" if row else "inputs"
    if name == PERCEPTUAL_PAIRS:
        return "perceptual"
    if folder == "duplicates":
        return f"semantic/{caption_set_of(name)}"
    if name.endswith("/repeated.parquet"):
        return f"repeated/{name.split('/')[1]}"
    if folder in ("captions", "embeddings", "latents", "text"):
        return f"{folder}/{rest.partition('/')[0]}"
    if folder in (*FILES_OF_PARTS, "listed"):
        return folder
    return "shards" if folder == "shards" or name in ("index.parquet", REJECTED_CLIPS) or "/" not in name else name


def _is_made_from(stage: str, source: str, shard_sets: Set[str]) -> bool:
    """Whether `stage` reads what `source` wrote."""
    kind, _, set_name = stage.partition("/")
    source_kind, _, source_set = source.partition("/")
    if kind == "inputs":
        return source == "listed"
    if kind in FILES_OF_PARTS:
        return source in ("inputs", "listed")
    if kind == "perceptual":
        return source == "fingerprints"
    if kind in ("captions", "embeddings"):
        return source in ("videos", "clips", "spans", "perceptual")
    if kind == "semantic":
        return source in ("fingerprints", f"embeddings/{set_name}")
    if kind == "repeated":
        return source in ("perceptual", f"captions/{set_name}")
    if kind == "shards":  # the pairs of every caption set count for duplicates
        is_of_its_set = source_kind in ("captions", "repeated") and source_set in shard_sets
        return source in ("videos", "clips", "perceptual") or source_kind == "semantic" or is_of_its_set
    if kind == "latents":
        return source == "shards"
    if kind == "text":
        return source == "shards" or source_kind == "captions"
    return False


def open_sources(stage: str, damaged: Iterable[str], shard_sets: Set[str], *, indirect: bool) -> set[str]:
    """The damaged stages that `stage` is made from.

    Args:
        damaged: stages with open problems.
        shard_sets: caption sets that the shards may have been written from.
        indirect: also those that its sources are made from: damage there can hide damage nearer by.
    """
    stages = {*damaged}
    stages |= {f"{kind}/{name}" for name in shard_sets for kind in ("captions", "embeddings", "semantic", "repeated")}
    stages |= {"inputs", "listed", *FILES_OF_PARTS, "perceptual", "shards"}
    found: set[str] = set()
    waiting = [stage]
    while waiting:
        one = waiting.pop()
        sources = {source for source in stages - found if _is_made_from(one, source, shard_sets)}
        found |= sources
        waiting += sources if indirect else ()
    return found & {*damaged} - {stage}
