"""`recaption caption`: kept clips -> RUN/captions/<set>. A caption set is a version; shards made from another one stay.

A part of captions belongs to the part of clips of the same number, as do the clips' embeddings in RUN/embeddings/<set>,
which are written first. A part is complete when its file is there with the same settings and the same kept clips; where
only the kept clips changed (a threshold moved), captions that exist are kept and only the missing ones are made.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from jobs import attempts
from jobs.cluster import Cluster
from jobs.duplicates import find_semantic
from jobs.recipes import CaptionSettings, Recipe, stage_hashes
from jobs.run_state import kept_clips, part_name, part_number, write_recipe
from recaption.captioners import Captioner, Described, check_spec, load_captioner, runs_elsewhere
from recaption.captions import clean
from recaption.clip_frames import frames_of
from recaption.errors import UsageError, VideoError
from recaption.inputs import read_side_text
from recaption.records import Caption, Clip, ClipEmbedding, from_table, to_table
from recaption.run_folder import RunFolder, recipe_hash
from recaption.video_io import DecodeLimits

RETRY_TEMPERATURE = 0.7
Sums = dict[str, float]
"""What a part's metadata carries: counts and sums of scores over its clips."""
SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def caption(
    run: RunFolder, recipe: Recipe, set_name: str, cluster: Cluster, *, only: Collection[int] | None = None
) -> dict[str, Any]:
    """Caption every kept clip that this set does not have yet.

    Args:
        only: parts that may be computed; default: all.

    Raises:
        UsageError: unknown captioner, weights out of reach, no clips in the run folder.
    """
    if not SET_NAME.fullmatch(set_name):
        raise UsageError(f"--set {set_name!r}: use letters, digits, - and _ only")
    for spec in filter(None, (recipe.caption.captioner, recipe.caption.scorer)):
        check_spec(spec)
    kept = kept_clips(run, recipe, before_captions=True)
    stage_hash = stage_hashes(recipe)["caption"]
    folder = f"captions/{set_name}"
    parts = [
        {"part": number, "clips": [dataclasses.asdict(c) for c in clips], "clips_hash": _clips_hash(clips)}
        for number, clips in kept.items()
        if (only is None or number in only)
        and not _is_done(run, part_name(folder, number), stage_hash, _clips_hash(clips))
    ]
    settings = {
        "run_uri": run.uri,
        "folder": folder,
        "settings": recipe.caption,
        "decode": recipe.prepare.decode,
        "stage_hash": stage_hash,
    }
    device = "cpu" if runs_elsewhere(recipe.caption.captioner) else recipe.caption.device
    made: list[dict[str, Any]] = []
    for done in cluster.run_parts(CaptionWorker, settings, parts, title="caption", device=device, unit="captions"):
        if not made:
            write_recipe(run, recipe)  # not before: a captioner that cannot be loaded leaves no trace
        made.append(done)
    write_recipe(run, recipe)
    find_semantic(run, recipe.prepare.duplicates, set_name)
    seconds = sum(part["seconds"] for part in made)
    return {
        **summarise(run, set_name),
        "clips_per_second": sum(part["captions"] for part in made) / seconds if seconds else 0.0,
        "computed_parts": len(parts),
        "skipped_parts": len(kept) - len(parts),
        "throughput": cluster.throughput(),
    }


def _clips_hash(clips: list[Clip]) -> str:
    return recipe_hash([clip.clip_id for clip in clips])


def _is_done(run: RunFolder, name: str, stage_hash: str, clips_hash: str) -> bool:
    if not run.exists(name):
        return False
    metadata = run.table_metadata(name)
    return metadata.get("recipe_hash") == stage_hash and metadata.get("clips_hash") == clips_hash


def summarise(run: RunFolder, set_name: str) -> dict[str, Any]:
    """Counts of a whole caption set, and its shuffled-pair check: own clip against another clip of the same batch."""
    bad: dict[str, int] = {}
    num_captions = num_pairs = num_retried = 0
    matched = mismatched = 0.0
    for name in run.list(f"captions/{set_name}/part-*.parquet"):
        metadata = run.table_metadata(name)
        num_pairs += int(metadata["num_pairs"])
        num_retried += int(metadata["num_retried"])
        matched += float(metadata["matched_sum"])
        mismatched += float(metadata["mismatched_sum"])
        for row in from_table(run.read_table(name), Caption):
            if row.source != "model":
                continue
            num_captions += row.reason is None
            if row.reason is not None:
                bad[row.reason] = bad.get(row.reason, 0) + 1
    return {
        "captions": num_captions,
        "retried": num_retried,
        "bad": bad,
        "matched_score": matched / num_pairs if num_pairs else None,
        "mismatched_score": mismatched / num_pairs if num_pairs else None,
    }


def open_captioner(settings: CaptionSettings, *, device: str) -> Captioner:
    """The captioner that a recipe names, with what it is to be asked."""
    return load_captioner(
        settings.captioner,
        device=device,
        scorer=settings.scorer,
        prompt=settings.prompt,
        num_frames=settings.num_frames,
        endpoint=settings.endpoint,
    )


class CaptionWorker:
    """One per actor: the captioner is loaded once."""

    def __init__(
        self, run_uri: str, folder: str, settings: CaptionSettings, decode: DecodeLimits, stage_hash: str
    ) -> None:
        import torch

        from train.distributed import choose_device

        torch.set_num_threads(1)  # one actor, one core: and float sums do not depend on the machine's core count
        self.run = RunFolder(run_uri)
        self.folder = folder
        self.embeddings = folder.replace("captions/", "embeddings/", 1)
        self.settings = settings
        self.decode = decode
        self.stage_hash = stage_hash
        self.captioner = open_captioner(settings, device=str(choose_device(settings.device)))

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        import time

        started = time.perf_counter()
        name = part_name(self.folder, part["part"])
        clips = [Clip(**row) for row in part["clips"]]
        existing, embeddings, sums = self._existing(part["part"], {clip.clip_id for clip in clips})
        new = [clip for clip in clips if clip.clip_id not in existing]
        for batch in attempts.batches(new, self.settings.batch_size, lambda clip: clip.clip_id):
            made, made_embeddings = self._caption_batch(batch, sums)
            embeddings |= made_embeddings
            for row in made:
                existing.setdefault(row.clip_id, []).append(row)
        attempts.begin()
        rows = [row for clip in clips for row in existing.get(clip.clip_id, [])]
        metadata = {
            "recipe_hash": self.stage_hash,
            "clips_hash": part["clips_hash"],
            **{key: repr(value) for key, value in sums.items()},
        }
        of_clips = [
            ClipEmbedding(clip_id=clip.clip_id, embedding=embeddings[clip.clip_id])
            for clip in clips
            if clip.clip_id in embeddings
        ]
        self.run.write_table(part_name(self.embeddings, part["part"]), to_table(of_clips, ClipEmbedding), metadata)
        self.run.write_table(name, to_table(rows, Caption), metadata)
        return {"part": part_number(name), "captions": len(new), "seconds": time.perf_counter() - started}

    def _existing(self, number: int, wanted: set[str]) -> tuple[dict[str, list[Caption]], dict[str, bytes], Sums]:
        """Captions and embeddings of the same settings that an earlier run of this part left, and their sums."""
        name = part_name(self.folder, number)
        sums: Sums = {"num_pairs": 0, "num_retried": 0, "matched_sum": 0.0, "mismatched_sum": 0.0}
        found: dict[str, list[Caption]] = {}
        embeddings: dict[str, bytes] = {}
        if self.run.exists(name) and (metadata := self.run.table_metadata(name)).get("recipe_hash") == self.stage_hash:
            sums = {name: type(zero)(metadata[name]) for name, zero in sums.items()}
            for row in from_table(self.run.read_table(name), Caption):
                if row.clip_id in wanted:
                    found.setdefault(row.clip_id, []).append(row)
            beside = from_table(self.run.read_table(part_name(self.embeddings, number)), ClipEmbedding)
            embeddings = {row.clip_id: row.embedding for row in beside if row.clip_id in wanted}
        return found, embeddings, sums

    def _caption_batch(self, clips: list[Clip], sums: Sums) -> tuple[list[Caption], dict[str, bytes]]:
        rows: list[Caption] = []
        seen: list[Clip] = []
        frames: list[np.ndarray] = []
        for clip in clips:
            original = read_side_text(clip.uri)
            if original:
                rows.append(self._bound(Caption(text=clean(original), source="original"), clip))
            try:
                attempts.begin(clip.clip_id)
                frames.append(frames_of(clip, self.captioner, self.decode, snap_seconds=self.settings.snap_seconds))
            except VideoError as error:
                rows.append(self._bound(Caption(reason=error.reason), clip))
            else:
                seen.append(clip)
        if not frames:
            return rows, {}
        attempts.begin(*(clip.clip_id for clip in seen))
        described = self._described(frames, sums)
        rows += [self._bound(text, clip) for text, clip in zip(described.captions, seen, strict=True)]
        if described.clip_BD is None or described.text_BD is None:
            return rows, {}  # a captioner without contrastive space, and no --caption.scorer
        _add_pairs(described.clip_BD @ described.text_BD.T, sums)
        halves_BD = described.clip_BD.astype("<f2")
        return rows, {clip.clip_id: row.tobytes() for clip, row in zip(seen, halves_BD, strict=True)}

    def _described(self, frames: list[np.ndarray], sums: Sums) -> Described:
        """One caption per clip; what fails a gate is tried once more, drawn at random with another seed."""
        settings = self.settings
        first = self.captioner.describe(
            frames, max_tokens=settings.max_tokens, num_beams=settings.num_beams, seed=settings.seed
        )
        failed = [i for i, caption in enumerate(first.captions) if caption.reason is not None]
        if failed:
            again = self.captioner.describe(
                [frames[i] for i in failed],
                max_tokens=settings.max_tokens,
                temperature=RETRY_TEMPERATURE,
                seed=settings.seed + 1,
            )
            sums["num_retried"] += len(failed)
            for place, i in enumerate(failed):
                if again.captions[place].reason is None:
                    first.captions[i] = again.captions[place]
                    if first.text_BD is not None and again.text_BD is not None:
                        first.text_BD[i] = again.text_BD[place]
        return first

    def _bound(self, text: Caption, clip: Clip) -> Caption:
        return dataclasses.replace(
            text,
            clip_id=clip.clip_id,
            start_seconds=clip.start_seconds,
            end_seconds=clip.end_seconds,
            recipe_hash=self.stage_hash,
        )


def _add_pairs(scores: np.ndarray, sums: Sums) -> None:
    """Add each clip's score with its own caption, and with the next clip's caption, to the running sums."""
    count = len(scores)
    if count < 2:
        return
    sums["num_pairs"] += count
    sums["matched_sum"] += float(np.trace(scores))
    sums["mismatched_sum"] += float(sum(scores[i, (i + 1) % count] for i in range(count)))
