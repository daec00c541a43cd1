"""`recaption verify`: checks that the ledger adds up, shards are intact and captions belong to their clips.

recaption verify --run RUN --pairs 32        # 0: decode no pixels; all: every caption and sample
recaption verify --run RUN --repair          # see jobs/verify/repair.py
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from jobs.caption.open_captions import open_warnings
from jobs.recipe.run_inputs import source_states
from jobs.recipe.settings import Recipe
from jobs.verify.samples import check_samples
from recaption.captions.repeated import read_repeated
from recaption.captions.sets import (
    CAPTION_STATE_SCHEMA,
    caption_set_pattern,
    caption_sets,
    main_captions,
    mark_repeated_captions,
)
from recaption.errors import UsageError
from recaption.ledger.caption_checks import CaptionCheckResult, CaptionClipPair, check_pairs, sample_pairs
from recaption.ledger.ledger import CLIPS_SCHEMA, build_ledger, committed_clips
from recaption.ledger.problems import Problem, read_tables_or_problems
from recaption.ledger.source_checks import check_sources
from recaption.ledger.verify import verify
from recaption.records import Clip, from_table
from recaption.run_folder import RunFolder

DEFAULT_PAIRS = 32
"""Takes seconds on one core with the captioner in the package; shuffled captions show with far fewer."""


def parse_pairs(text: str) -> int | None:
    """Number of captions per set to check against the pixels of their clips; None for `all`.

    Raises:
        UsageError: not a number and not `all`.
    """
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"--pairs {text!r}: a number of captions per set, 0 for none, or all")
    return int(text)


def verify_run(
    run: RunFolder, recipe: Recipe, *, num_pairs: int | None = DEFAULT_PAIRS, progress: bool = False
) -> dict[str, Any]:
    """Summary with the problems found and the sums checked; checks that could not run are listed, not counted as damage."""
    problems, checks = find_problems(run, recipe, num_pairs=num_pairs, progress=progress)
    return as_summary(run, recipe, problems, checks)


def find_problems(
    run: RunFolder, recipe: Recipe, *, num_pairs: int | None, progress: bool
) -> tuple[list[Problem], dict[str, Any]]:
    """(problems, {"pairs": caption set -> summary of its caption-clip checks, "samples": summary of that check})."""

    def track(rows: Sequence[Any]) -> Any:
        return tqdm(rows, desc="verify", file=sys.stderr, disable=not progress)

    has_pairs = recipe.prepare.duplicates.perceptual
    problems = verify(run, recipe.filters, has_perceptual_pairs=has_pairs, track=track)
    problems += check_sources(run, track=track)
    changed = {p.where.partition(":")[2] for p in problems if p.kind == "caption_changed"}
    pairs = {}
    for set_name in caption_sets(run) if num_pairs != 0 else ():
        check = _check_set(run, recipe, set_name, num_pairs, first=changed, progress=progress)
        problems += check.problems + check.changed_sources
        pairs[set_name] = check.summary()
    checks: dict[str, Any] = {"pairs": pairs}
    if num_pairs != 0 and run.exists("index.parquet"):
        samples = check_samples(run, recipe, num_pairs, progress=progress)
        problems += samples.problems
        checks["samples_checked"] = samples.summary()
    unique = {(problem.kind, problem.where): problem for problem in reversed(problems)}
    return [problem for problem in problems if unique.get((problem.kind, problem.where)) is problem], checks


def as_summary(run: RunFolder, recipe: Recipe, problems: list[Problem], checks: dict[str, Any]) -> dict[str, Any]:
    """The `--json` summary; without sums if tables that they need cannot be read."""
    summary: dict[str, Any] = {"ok": not problems}
    if not any(problem.kind == "part_unreadable" for problem in problems):
        sums = build_ledger(run, recipe.filters).summary()
        summary |= {key: sums[key] for key in ("videos", "clips", "seconds")}
        summary["faults"] = {name: faults_of(run, recipe, name) for name in caption_sets(run)}
        if warnings := open_warnings(run):
            summary["warnings"] = warnings
    return {
        **summary,
        **checks,
        "problems": [{"kind": p.kind, "where": p.where, "detail": p.detail} for p in problems],
    }


def faults_of(run: RunFolder, recipe: Recipe, set_name: str) -> dict[str, int]:
    """Fault -> number of main captions that failed with it."""
    captions = run.read_tables(caption_set_pattern(set_name), CAPTION_STATE_SCHEMA)
    captions = mark_repeated_captions(captions, read_repeated(run, set_name), recipe.filters.max_clips_per_caption)
    counts = Counter(main_captions(captions)["fault"].to_pylist())
    return {fault: count for fault, count in sorted(counts.items()) if fault}


def _check_set(
    run: RunFolder, recipe: Recipe, set_name: str, num_pairs: int | None, *, first: Collection[str], progress: bool
) -> CaptionCheckResult:
    from jobs.caption.worker import open_captioner
    from train.parallel.process_group import choose_device

    pairs, _ = sample_pairs(run, set_name, num_pairs, first=first)
    if not pairs:
        return CaptionCheckResult(set_name=set_name)
    try:
        captioner = open_captioner(recipe.caption, device=str(choose_device(recipe.caption.device)))
    except UsageError as error:
        return CaptionCheckResult(set_name=set_name, unchecked={f"no captioner: {error}": len(pairs)})

    def track(rows: Sequence[CaptionClipPair]) -> Any:
        return tqdm(rows, desc=f"pairs of {set_name}", unit="clip", file=sys.stderr, disable=not progress)

    clips = clips_of(run, {pair.clip_id for pair in pairs})
    decode, snap_seconds = recipe.prepare.decode, recipe.caption.snap_seconds
    states = source_states(run, {clip.uri: clip.video_id for clip in clips.values()})
    return check_pairs(
        set_name, pairs, captioner, clips, states=states, decode=decode, snap_seconds=snap_seconds, track=track
    )


def clips_of(run: RunFolder, clip_ids: Collection[str]) -> dict[str, Clip]:
    """The clips with these ids, from readable parts; one part in memory at a time."""
    wanted = pa.array(sorted(clip_ids), pa.string())
    found: dict[str, Clip] = {}
    for name in committed_clips(run):
        tables, _ = read_tables_or_problems(run, [name], CLIPS_SCHEMA)
        for table in tables.values():
            rows = table.filter(pc.is_in(table["clip_id"], value_set=wanted))
            for clip in from_table(rows, Clip):
                found.setdefault(clip.clip_id, clip)
    return found
