"""Finds files that must have existed, because files that are made from them, or written after them, exist.

A stage that has not run, or was killed, is no problem: only what a later stage has read is missed here. Missing parts of
a stage that has others are found by verify.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from recaption.captions.repeated import repeated_name
from recaption.captions.sets import REJECTED_CLIPS, caption_set_pattern, caption_sets
from recaption.dedup.near_duplicates import PERCEPTUAL_PAIRS, semantic_pairs_file
from recaption.ledger.encoded_texts import ENCODER_FILE
from recaption.ledger.ledger import committed_clips
from recaption.ledger.problems import Problem
from recaption.run_folder import RunFolder

INDEX, INPUTS = "index.parquet", "inputs.parquet"


def find_lost_files(run: RunFolder, *, has_perceptual_pairs: bool) -> Iterator[Problem]:
    """One problem per file.

    Args:
        has_perceptual_pairs: whether the recipe searches for perceptual duplicates.
    """
    yield from _indices(run)
    if run.list("videos/part-*.parquet") and not run.exists(INPUTS):
        detail = "the list of inputs is missing: whether each has a row cannot be checked"
        yield Problem(kind="input_missing", where=INPUTS, detail=detail)
    for name in run.list("videos/part-*.parquet"):
        for folder in ("previews", "fingerprints"):
            if not run.list(f"{folder}/part-*.parquet"):
                yield _lost(name.replace("videos/", f"{folder}/", 1), f"{name}, which is written after it, exists")
    if not any(run.list(pattern) for pattern in (INDEX, "shards/*.parquet", "shards/*/*.parquet")):
        return
    if has_perceptual_pairs and run.list("fingerprints/part-*.parquet") and not run.exists(PERCEPTUAL_PAIRS):
        yield _lost(PERCEPTUAL_PAIRS, "there are shards, which depend on it")
    if not run.exists(REJECTED_CLIPS):
        yield _lost(REJECTED_CLIPS, "there are shards, which are written after it")
    yield from _captions(run)


def _lost(name: str, because: str) -> Problem:
    return Problem(kind="part_missing", where=name, detail=f"missing, although {because}")


def _indices(run: RunFolder) -> Iterator[Problem]:
    latents = sorted({"/".join(name.split("/")[:2]) for name in run.list("latents/*/*/*.parquet")})
    encoded = sorted({name.rsplit("/", 1)[0] for name in run.list("text/*/part-*.safetensors")})
    if (latents or encoded) and not run.exists(INDEX):
        detail = f"missing, although {[*latents, *encoded][0]}, which is made from the shards, exists"
        yield Problem(kind="index_missing", where=INDEX, detail=detail)
    for folder in latents:
        if not run.exists(f"{folder}/{INDEX}"):
            detail = "there are latents and no index of them; run `recaption encode` again"
            yield Problem(kind="index_missing", where=f"{folder}/{INDEX}", detail=detail)
    for folder in encoded:
        if not run.exists(f"{folder}/{ENCODER_FILE}"):
            yield _lost(f"{folder}/{ENCODER_FILE}", "there are encoded texts; run `recaption encode` again")


def shard_sets(run: RunFolder) -> list[str]:
    """The caption set of the shards; where the table that names it is lost, the finished sets, or all if there is none."""
    try:
        named = run.table_metadata(REJECTED_CLIPS).get("set") if run.exists(REJECTED_CLIPS) else None
    except (pa.ArrowException, OSError):
        named = None
    if named is not None:
        return [named]
    sets, num_parts = caption_sets(run), len(committed_clips(run))
    return [name for name in sets if len(run.list(caption_set_pattern(name))) >= num_parts] or sets


def _captions(run: RunFolder) -> Iterator[Problem]:
    """The captions of the shards, and of every finished set its repeated captions, embeddings and semantic pairs."""
    clips = committed_clips(run)
    for set_name in shard_sets(run):
        for name in clips:
            where = name.replace("clips/", f"captions/{set_name}/", 1)
            if not run.exists(where):
                detail = f"the captions of {name} are missing although there are shards of this set"
                yield Problem(kind="caption_missing", where=where, detail=detail)
    for set_name in caption_sets(run):
        parts = run.list(caption_set_pattern(set_name))
        if len(parts) < len(clips):
            continue  # captioning has not come to its end
        if not run.exists(repeated_name(set_name)):
            yield _lost(repeated_name(set_name), "the captions of this set are finished")
        has_pairs = run.exists(semantic_pairs_file(set_name))
        has_embeddings = bool(run.list(f"embeddings/{set_name}/part-*.parquet"))
        if has_embeddings and not has_pairs:
            yield _lost(semantic_pairs_file(set_name), "the embeddings of this set are finished")
        for name in parts if has_pairs and not has_embeddings else ():
            where = name.replace("captions/", "embeddings/", 1)
            detail = f"missing, although {semantic_pairs_file(set_name)}, which is made from it, exists"
            yield Problem(kind="embedding_missing", where=where, detail=detail)
