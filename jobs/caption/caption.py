"""`recaption caption`: captions the kept clips into RUN/captions/<set>.

A caption set is a version: a new set leaves other sets, and shards written from them, unchanged. Parts of captions and
of clip embeddings (RUN/embeddings/<set>, written first) have the numbers of the parts of clips. A clip has one row per
caption kind and window, plus one for its original text; shards and reports use the descriptive caption of the whole clip.
A part is complete if its file exists with the same settings and the same kept clips, and no caption of it is open (its
endpoint gave no answer: the next run asks again, for those clips only); if only the kept clips changed (a
threshold moved), existing captions are reused and only the missing ones are generated.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from jobs.caption.open_captions import NUM_OPEN
from jobs.caption.repeated import find_repeated_captions
from jobs.caption.semantic import find_semantic
from jobs.caption.worker import NAMES_HASH, PASSING_SOURCES, REFUSED_TEXTS, CaptionWorker, check_specs, names_hash
from jobs.cluster.cluster import Cluster
from jobs.recipe.part_names import part_name, part_number
from jobs.recipe.run_inputs import check_still_there, kept_clips, source_is_back, source_states, write_recipe
from jobs.recipe.settings import Recipe, stage_hashes
from recaption.captioners.registry import is_remote
from recaption.captions.repeated import read_repeated
from recaption.captions.sets import caption_set_pattern, mark_repeated_captions
from recaption.captions.text import PASSING_FAULTS
from recaption.errors import UsageError
from recaption.inputs.open_input import InputState
from recaption.ledger.spans import TEXTS_HASH, texts_hash
from recaption.records import Caption, Clip, conform, from_table, schema_of
from recaption.run_folder import RunFolder, recipe_hash

HIGH_DEFECT_FRACTION = 0.2
"""Warn if more than this fraction of the captions fails the quality gates."""
SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def caption(
    run: RunFolder, recipe: Recipe, set_name: str, cluster: Cluster, *, only: Collection[int] | None = None
) -> dict[str, Any]:
    """Caption every kept clip that is not in this caption set yet.

    Args:
        only: parts that may be computed; default: all.

    Raises:
        UsageError: unknown captioner, weights not available, or no clips in the run folder.
    """
    if not SET_NAME.fullmatch(set_name):
        raise UsageError(f"--set {set_name!r}: use letters, digits, - and _ only")
    check_specs(recipe.caption)
    kept = kept_clips(run, recipe, before_captions=True)
    stage_hash = stage_hashes(recipe)["caption"]
    folder = f"captions/{set_name}"
    states = source_states(run, {clip.uri: clip.video_id for clips in kept.values() for clip in clips})
    parts: list[dict[str, Any]] = [
        {
            "part": number,
            "clips": [dataclasses.asdict(c) for c in clips],
            "clips_hash": _clips_hash(clips),
            "sources": {c.uri: dataclasses.asdict(states[c.uri]) for c in clips},
        }
        for number, clips in kept.items()
        if (only is None or number in only) and not _is_done(run, part_name(folder, number), stage_hash, clips, states)
    ]
    settings = {
        "run_uri": run.uri,
        "folder": folder,
        "settings": recipe.caption,
        "decode": recipe.prepare.decode,
        "stage_hash": stage_hash,
    }
    device = "cpu" if is_remote(recipe.caption.captioner) else recipe.caption.device
    results: list[dict[str, Any]] = []
    for result in cluster.run_parts(CaptionWorker, settings, parts, title="caption", device=device, unit="captions"):
        if not results:
            write_recipe(run, recipe)  # not before: a captioner that cannot be loaded must not change run.yaml
        results.append(result)
    check_still_there(run, [part_name(folder, part["part"]) for part in parts] if results else (), "caption")
    write_recipe(run, recipe)
    if run.list(f"embeddings/{set_name}/part-*.parquet"):
        find_semantic(run, recipe.prepare.duplicates, set_name)
    find_repeated_captions(run, recipe.caption.repeats, set_name)
    seconds = sum(part["seconds"] for part in results)
    throughput = cluster.throughput()
    return {
        **summarise(run, set_name, recipe.filters.max_clips_per_caption),
        "clips_per_second": sum(part["captions"] for part in results) / seconds if seconds else 0.0,
        "computed_parts": len(parts),
        "skipped_parts": len(kept) - len(parts),
        "decoder_fallbacks": throughput.get("decoder_fallbacks", {}),
        "throughput": throughput,
    }


def _clips_hash(clips: list[Clip]) -> str:
    return recipe_hash([clip.clip_id for clip in clips])


def _is_done(run: RunFolder, name: str, stage_hash: str, clips: list[Clip], states: dict[str, InputState]) -> bool:
    """Whether a part is as it would be written now; not where a source can be had again, or a caption is open."""
    if not run.exists(name):
        return False
    metadata = run.table_metadata(name)
    if int(metadata.get(NUM_OPEN, 0)):
        return False
    passing = json.loads(metadata.get(PASSING_SOURCES, "{}"))
    if any(reason == "fetch_failed" or source_is_back(uri, states) for uri, reason in passing.items()):
        return False
    now = {"recipe_hash": stage_hash, "clips_hash": _clips_hash(clips), NAMES_HASH: names_hash(clips)}
    return now.items() <= metadata.items() and texts_hash(run, part_number(name)) == metadata.get(TEXTS_HASH, "")


def summarise(run: RunFolder, set_name: str, max_clips_per_caption: int | None) -> dict[str, Any]:
    """Counts of a caption set, and its mean scores of matched and of mismatched (clip, caption) pairs of a batch."""
    bad: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    other_captions: Counter[str] = Counter()
    num_captions = num_pairs = num_retried = num_stripped = 0
    matched = mismatched = 0.0
    refused: dict[str, str] = {}
    originals: Counter[bool] = Counter()
    open_clips: set[str] = set()
    repeated = read_repeated(run, set_name)
    for name in run.list(caption_set_pattern(set_name)):
        metadata = run.table_metadata(name)
        refused |= json.loads(metadata.get(REFUSED_TEXTS, "{}"))
        num_pairs += int(metadata["num_pairs"])
        num_retried += int(metadata["num_retried"])
        matched += float(metadata["matched_sum"])
        mismatched += float(metadata["mismatched_sum"])
        table = conform(run.read_table(name), schema_of(Caption))
        for row in from_table(mark_repeated_captions(table, repeated, max_clips_per_caption), Caption):
            num_stripped += bool(row.stripped)
            if row.source == "original":
                originals[row.reason is None] += 1
            if row.fault in PASSING_FAULTS:
                open_clips.add(row.clip_id)
            elif row.is_main:
                num_captions += row.reason is None
                bad[row.reason or ""] += 1
                faults[row.fault] += 1
            elif row.reason is None:
                other_captions["windows" if row.window else row.kind or row.source] += 1
            elif row.source == "model":
                other_captions["bad"] += 1
    del bad[""], faults[""]
    matched_mean, mismatched_mean = (total / num_pairs if num_pairs else None for total in (matched, mismatched))
    summary = {
        "captions": num_captions,
        "open": len(open_clips),
        "retried": num_retried,
        "bad": dict(sorted(bad.items())),
        "faults": dict(sorted(faults.items())),
        "stripped": num_stripped,
        "repeated": repeated.num_rows,
        "further": dict(sorted(other_captions.items())),
        "original_texts": {"good": originals[True], "bad": originals[False]},
        "refused_texts": [f"{uri}: {why}" for uri, why in sorted(refused.items())],
        "matched_score": matched_mean,
        "mismatched_score": mismatched_mean,
    }
    errors = list(_errors(summary))
    warnings = [*errors, *_warnings(summary, num_pairs)]
    return summary | ({"errors": errors} if errors else {}) | ({"warnings": warnings} if warnings else {})


def _errors(summary: dict[str, Any]) -> Iterator[str]:
    """What makes the stage end with exit code 1: work that is open, or that came to nothing."""
    num_bad, num_open = sum(summary["bad"].values()), summary["open"]
    if num_open:
        yield f"{num_open} clip{'s' * (num_open > 1)} got no answer; the same command asks again"
    if not summary["captions"] and num_bad:
        reasons = summary["faults"] or summary["bad"]
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        yield f"all captions failed ({listed}): no clip can go into the shards"
    originals, refused = summary["original_texts"], len(summary["refused_texts"])
    if not originals["good"] and (num_refused := originals["bad"] + refused):
        yield f"all {num_refused} texts beside the videos were refused: none is used as an original caption"


def _warnings(summary: dict[str, Any], num_pairs: int) -> Iterator[str]:
    matched, mismatched = summary["matched_score"], summary["mismatched_score"]
    if matched is not None and matched <= mismatched:
        yield (
            f"captions match their own clips ({matched:.3f}) no better than other clips ({mismatched:.3f}), over "
            f"{num_pairs} pairs: the captions do not describe these clips, or this captioner cannot tell the clips apart; "
            "`recaption verify` checks each caption against its clip"
        )
    if refused := summary["refused_texts"]:
        yield f"{len(refused)} texts beside videos are not used as original captions, such as {refused[0]}"
    num_bad = sum(summary["faults"].values())
    if num_bad > HIGH_DEFECT_FRACTION * (num_bad + summary["captions"]):
        faults = ", ".join(f"{fault} {count}" for fault, count in summary["faults"].items())
        yield f"{num_bad} of {num_bad + summary['captions']} captions failed a gate ({faults})"
