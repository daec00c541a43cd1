"""Worker of the caption stage: decode the clips of a part, caption them, apply the quality gates, write the part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.caption.encoder_cache import EncoderCache
from jobs.caption.open_captions import NUM_OPEN
from jobs.cluster import attempts
from jobs.recipe.part_names import part_name, part_number
from jobs.recipe.stage_settings import CaptionSettings
from recaption.captioners.clip_views import CaptionInput, sample_windows
from recaption.captioners.gates import QualityGates, mark_bad
from recaption.captioners.interface import CaptionBatch, Captioner
from recaption.captioners.registry import check_spec
from recaption.captions.text import PASSING_FAULTS, normalize_text
from recaption.errors import PASSING_REASONS, UsageError, VideoError
from recaption.inputs.names import local_path
from recaption.inputs.open_input import InputState, local_state
from recaption.inputs.sidecars import Sidecar, find_sidecar
from recaption.ledger.spans import TEXTS_HASH, read_texts, texts_hash
from recaption.records import Caption, Clip, ClipEmbedding, from_table, to_table
from recaption.run_folder import RunFolder, recipe_hash
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.opened_video import OpenVideos

RETRY_TEMPERATURE = 0.7
NAMES_HASH = "names_hash"
"""Metadata of a part: hash of the names of its videos; of inputs with equal bytes another may give the name now."""
PASSING_SOURCES, REFUSED_TEXTS = "passing_sources", "refused_texts"
"""Metadata of a part: uri -> reason of sources to try again; uri -> why the text beside the video is not used."""
Sums = dict[str, float]
"""Counts and score sums over the clips of a part, stored in its metadata."""


def names_hash(clips: Sequence[Clip]) -> str:
    """Hash of the names of the videos of these clips."""
    return recipe_hash(sorted({clip.uri for clip in clips}))


def check_specs(settings: CaptionSettings) -> None:
    """Raise UsageError if the captioners of a recipe cannot be opened; loads no weights."""
    for spec in filter(None, (settings.captioner, settings.scorer)):
        check_spec(spec)


def open_captioner(settings: CaptionSettings, *, device: str) -> Captioner:
    """Load the captioner of a recipe, with its prompt and scorer."""
    from recaption.captioners import registry

    return registry.load_captioner_with_precision(
        settings.captioner,
        device=device,
        precision=settings.precision,
        scorer=settings.scorer,
        prompt=settings.prompt,
        num_frames=settings.num_frames,
        endpoint=settings.endpoint,
    )


class CaptionWorker:
    """Captions the clips of a part. One per actor: the captioner is loaded once."""

    def __init__(
        self, run_uri: str, folder: str, settings: CaptionSettings, decode: DecodeLimits, stage_hash: str
    ) -> None:
        import torch

        from train.parallel.process_group import choose_device

        torch.set_num_threads(1)  # one actor, one core; float sums must not depend on the core count
        self.run = RunFolder(run_uri)
        self.folder = folder
        self.embeddings = folder.replace("captions/", "embeddings/", 1)
        self.settings = settings
        self.videos = OpenVideos(decode)
        self.states: dict[str, InputState] = {}
        """By uri: what `prepare` recorded of the videos of the current part."""
        self.sidecars: dict[str, Sidecar] = {}
        """By uri, of the current part."""
        self.listed_texts: dict[str, tuple[str, ...]] = {}
        """By clip, of the current part: texts of lists, the first is the original caption."""
        self.answered: dict[tuple[str, str, int], Caption] = {}
        """By clip, kind and window: what an earlier run was told of clips that another of its questions left open."""
        self.stage_hash = stage_hash
        self.captioner = open_captioner(settings, device=str(choose_device(settings.device)))
        self.encoder_cache = EncoderCache(self.run, self.embeddings, settings, self.captioner)
        _check_kinds(settings.kinds, self.captioner)
        self.gates = _gates(settings, self.captioner)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        import time

        started = time.perf_counter()
        name = part_name(self.folder, part["part"])
        clips = [Clip(**row) for row in part["clips"]]
        self.states = {uri: InputState(**state) for uri, state in part.get("sources", {}).items()}
        self.sidecars = {}
        self.listed_texts = read_texts(self.run, part["part"])
        self.videos.forget_failures()
        existing, embeddings, sums = self._read_existing(part["part"], {clip.clip_id for clip in clips})
        new = [clip for clip in clips if clip.clip_id not in existing]
        for clip in (one for one in clips if one.clip_id in existing and self._may_have_another_text(name, one)):
            captions = [row for row in existing[clip.clip_id] if row.source == "model"]
            existing[clip.clip_id] = [*self._original_rows(clip), *captions]
        self.encoder_cache.open(part["part"])
        for batch in attempts.batches(new, self.settings.batch_size, lambda clip: clip.clip_id):
            new_rows, new_embeddings = self._caption_batch(batch, sums)
            embeddings |= new_embeddings
            for row in new_rows:
                row = self.answered.get((row.clip_id, row.kind, row.window), row) if row.source == "model" else row
                existing.setdefault(row.clip_id, []).append(row)
        attempts.begin()
        rows = [row for clip in clips for row in existing.get(clip.clip_id, [])]
        metadata = {
            "recipe_hash": self.stage_hash,
            "clips_hash": part["clips_hash"],
            **{key: repr(value) for key, value in sums.items()},
            NAMES_HASH: names_hash(clips),
            TEXTS_HASH: texts_hash(self.run, part["part"]),
            NUM_OPEN: str(len({row.clip_id for row in rows if row.fault in PASSING_FAULTS})),
            **self._source_metadata(name, clips, existing),
        }
        clip_embeddings = [
            ClipEmbedding(clip_id=clip.clip_id, embedding=embeddings[clip.clip_id])
            for clip in clips
            if clip.clip_id in embeddings
        ]
        self.encoder_cache.write(part["part"], clips)
        if clip_embeddings or self.captioner.has_contrastive_head:
            self.run.write_table(
                part_name(self.embeddings, part["part"]), to_table(clip_embeddings, ClipEmbedding), metadata
            )
        self.run.write_table(name, to_table(rows, Caption), metadata)
        return {"part": part_number(name), "captions": len(new), "seconds": time.perf_counter() - started}

    def _source_metadata(self, name: str, clips: list[Clip], rows: dict[str, list[Caption]]) -> dict[str, str]:
        """What later runs have to know of the sources: those to try again, and side texts that were refused."""
        reasons = {clip.uri: row.reason for clip in clips for row in rows.get(clip.clip_id, []) if row.is_main}
        passing = {uri: reason for uri, reason in reasons.items() if reason in PASSING_REASONS}
        passing |= {uri: "fetch_failed" for uri, found in self.sidecars.items() if found.may_pass}
        before = json.loads(self.run.table_metadata(name).get(REFUSED_TEXTS, "{}")) if self.run.exists(name) else {}
        refused = {uri: why for uri, why in before.items() if uri in reasons and uri not in self.sidecars}
        refused |= {uri: found.refusal for uri, found in self.sidecars.items() if found.refusal}
        return {
            PASSING_SOURCES: json.dumps(passing, sort_keys=True),
            REFUSED_TEXTS: json.dumps(refused, sort_keys=True),
        }

    def _read_existing(self, number: int, wanted: set[str]) -> tuple[dict[str, list[Caption]], dict[str, bytes], Sums]:
        """Captions and embeddings that an earlier run of this part wrote with the same settings, and their sums."""
        name = part_name(self.folder, number)
        sums: Sums = {"num_pairs": 0, "num_retried": 0, "matched_sum": 0.0, "mismatched_sum": 0.0}
        found: dict[str, list[Caption]] = {}
        self.answered = {}
        embeddings: dict[str, bytes] = {}
        embeddings_name = part_name(self.embeddings, number)
        if self.captioner.has_contrastive_head and not self.run.exists(embeddings_name):
            return found, embeddings, sums  # an incomplete part counts as missing
        if self.run.exists(name) and (metadata := self.run.table_metadata(name)).get("recipe_hash") == self.stage_hash:
            sums = {name: type(zero)(metadata[name]) for name, zero in sums.items()}
            for row in from_table(self.run.read_table(name), Caption):
                if row.clip_id in wanted:
                    found.setdefault(row.clip_id, []).append(row)
            for clip_id in [i for i, rows in found.items() if any(_is_passing(row) for row in rows)]:
                rows = found.pop(clip_id)
                self.answered |= {
                    (i.clip_id, i.kind, i.window): i for i in rows if i.clip_sha256 and not _is_passing(i)
                }
            clip_embeddings = (
                from_table(self.run.read_table(embeddings_name), ClipEmbedding)
                if self.run.exists(embeddings_name)
                else []
            )
            embeddings = {row.clip_id: row.embedding for row in clip_embeddings if row.clip_id in wanted}
        return found, embeddings, sums

    def _caption_batch(self, clips: list[Clip], sums: Sums) -> tuple[list[Caption], dict[str, bytes]]:
        rows: list[Caption] = []
        views: list[CaptionInput] = []
        for clip in clips:
            failed = None
            try:
                attempts.begin(clip.clip_id)
                views += self._views(clip)
            except VideoError as error:
                failed = error.reason
            if failed not in PASSING_REASONS:
                rows += self._original_rows(clip)
            if failed is not None:
                rows.append(self._for_clip(Caption(reason=failed), clip))
        if not views:
            return rows, {}
        attempts.begin(*dict.fromkeys(view.clip.clip_id for view in views))
        described = self._caption_views(views, sums)
        main = described["descriptive"]
        whole = [i for i, view in enumerate(views) if view.window == 0]
        for i, view in enumerate(views):
            rows += [self._for_clip(one.captions[i], view.clip, view, kind) for kind, one in described.items()]
        if (
            main.clip_embeddings_BD is None or main.text_embeddings_BD is None
        ):  # a captioner without a contrastive space
            return rows, {}
        told = [i for i in whole if main.captions[i].fault not in PASSING_FAULTS]
        _add_pair_scores(main.clip_embeddings_BD[told] @ main.text_embeddings_BD[told].T, sums)
        halves_BD = main.clip_embeddings_BD[whole].astype("<f2")
        return rows, {views[i].clip.clip_id: row.tobytes() for i, row in zip(whole, halves_BD, strict=True)}

    def _original_rows(self, clip: Clip) -> list[Caption]:
        """The text that lists have for the clip, else the one beside its video, if any; read once per video. Only of a video
        that is the one prepared."""
        if texts := self.listed_texts.get(clip.clip_id):
            original = Caption(text=normalize_text(texts[0]), source="original", kind="")
            return [self._for_clip(self.gates.apply_to_original(original), clip)]
        if clip.uri not in self.sidecars:
            self.sidecars[clip.uri] = find_sidecar(clip.uri)
        if not (text := self.sidecars[clip.uri].text):
            return []
        original = Caption(text=normalize_text(text), source="original", kind="")
        return [self._for_clip(self.gates.apply_to_original(original), clip)]

    def _may_have_another_text(self, name: str, clip: Clip) -> bool:
        return clip.clip_id in self.listed_texts or self._is_in_reach(name, clip.uri)

    def _is_in_reach(self, name: str, uri: str) -> bool:
        """Whether the text beside a video that has captions is read again: the video may have another name now, or a text
        that could not be fetched. Of one that is gone or has other bytes, what was read stays."""
        if local_path(uri) is None:
            return uri in json.loads(self.run.table_metadata(name).get(PASSING_SOURCES, "{}"))
        now, state = local_state(uri), self.states.get(uri)
        return now is not None and state is not None and state.has_same_stat(now)

    def _views(self, clip: Clip) -> list[CaptionInput]:
        if cached := self.encoder_cache.views(clip):
            return cached
        settings = self.settings
        return sample_windows(
            self.videos.open(clip.uri, self.states.get(clip.uri)),
            clip,
            self.captioner,
            window_seconds=settings.window_seconds,
            snap_seconds=settings.snap_seconds,
        )

    def _caption_views(self, views: list[CaptionInput], sums: Sums) -> dict[str, CaptionBatch]:
        """Kind -> one caption per view; frames are encoded once for all kinds."""
        frames = [view.frames_THWC for view in views]
        encoded = self.captioner.encode(frames) if hasattr(self.captioner, "encode") else frames
        self.encoder_cache.add(views, encoded)
        view_ids = [view.clip.clip_id for view in views]
        found = {kind: self._caption_kind(kind, encoded, view_ids, sums) for kind in self.settings.kinds}
        has_low_score = [caption.fault == "low_score" for caption in found["descriptive"].captions]

        def with_low_scores(described: CaptionBatch) -> CaptionBatch:
            """Frames that it cannot describe have no good short caption either."""
            captions = [
                mark_bad(caption, "low_score") if low and not caption.fault else caption
                for caption, low in zip(described.captions, has_low_score, strict=True)
            ]
            return dataclasses.replace(described, captions=captions)

        return {kind: with_low_scores(described) for kind, described in found.items()}

    def _caption_kind(self, kind: str, encoded: list[Any], view_ids: list[str], sums: Sums) -> CaptionBatch:
        """One caption per view; failed ones are retried once with another seed, over-long ones with fewer tokens.

        Those without an answer are asked for once more, as before: whichever run is told, the caption has to be the same.
        """
        settings = self.settings
        options = {
            "kind": kind,
            "max_tokens": settings.max_tokens,
            "num_beams": settings.num_beams,
            "seed": settings.seed,
            **_sampling_options(settings),
        }
        described = self.captioner.caption_with_embeddings(encoded, **options)
        if open_rows := [i for i, caption in enumerate(described.captions) if _is_passing(caption)]:
            again = self.captioner.caption_with_embeddings([encoded[i] for i in open_rows], **options)
            described = described.with_rows(open_rows, again)
        described = self.gates.apply(described, kind=kind, clip_ids=view_ids)
        failed = [i for i, row in enumerate(described.captions) if row.reason is not None and not _is_passing(row)]
        sums["num_retried"] += len(failed)
        long = [i for i in failed if described.captions[i].fault == "over_long"]
        fewer = self.gates.reduced_max_tokens([described.captions[i].text for i in long], settings.max_tokens)
        for rows, max_tokens in ((long, fewer), ([i for i in failed if i not in long], settings.max_tokens)):
            if rows:
                described = self._retry(described, rows, kind, encoded, view_ids, max_tokens)
        return described

    def _retry(
        self, first: CaptionBatch, rows: list[int], kind: str, encoded: list[Any], view_ids: list[str], max_tokens: int
    ) -> CaptionBatch:
        """`first` with the failed captions replaced by those of a second try that pass the gates."""
        again = self.captioner.caption_with_embeddings(
            [encoded[i] for i in rows],
            kind=kind,
            max_tokens=max_tokens,
            temperature=RETRY_TEMPERATURE,
            seed=self.settings.seed + 1,
        )
        # Gated together with the whole batch: the score margin compares against its other captions.
        second = self.gates.apply(first.with_rows(rows, again), kind=kind, clip_ids=view_ids)
        passed = [i for i in rows if second.captions[i].reason is None or _is_passing(second.captions[i])]
        return first.with_rows(passed, second.take(passed))

    def _for_clip(
        self, text: Caption, clip: Clip, view: CaptionInput | None = None, kind: str | None = None
    ) -> Caption:
        return dataclasses.replace(
            text,
            kind=text.kind if kind is None else kind,
            clip_id=clip.clip_id,
            start_seconds=view.start_seconds if view else clip.start_seconds,
            end_seconds=view.end_seconds if view else clip.end_seconds,
            window=view.window if view else 0,
            recipe_hash=self.stage_hash,
        )


def _is_passing(row: Caption) -> bool:
    """Whether a row says nothing about its clip: no answer, or no source, this time."""
    return row.fault in PASSING_FAULTS or row.reason in PASSING_REASONS


def _check_kinds(kinds: Sequence[str], captioner: Captioner) -> None:
    """Raise UsageError for kinds that the captioner does not have, or without `descriptive`, the kind that shards hold."""
    unknown = [kind for kind in kinds if kind not in captioner.kinds]
    if unknown:
        raise UsageError(
            f"--caption.kinds {unknown[0]}: captioner {captioner.name} was not trained on it (it has "
            f"{', '.join(captioner.kinds)})"
        )
    if "descriptive" not in kinds or len(set(kinds)) < len(kinds):
        raise UsageError(
            f"--caption.kinds {' '.join(kinds)}: name each once, and include descriptive, which shards hold"
        )


def _sampling_options(settings: CaptionSettings) -> dict[str, Any]:
    """Extra arguments for best-of-n sampling; {} otherwise, as not every captioner accepts them."""
    if settings.num_samples == 1:
        return {}
    return {"num_samples": settings.num_samples, "temperature": RETRY_TEMPERATURE}


def _gates(settings: CaptionSettings, captioner: Captioner) -> QualityGates:
    from train.text.lengths import load

    length = None
    if settings.text_encoder:
        try:
            length = load(
                settings.text_encoder,
                max_tokens=settings.max_text_tokens,
                captioner=captioner,
                captioner_spec=settings.captioner,
            )
        except UsageError as error:
            raise type(error)(f'{error} (or turn the token limit off: --caption.text-encoder "")') from error
    return QualityGates(
        min_clip_score=settings.min_clip_score,
        min_clip_scores=captioner.min_clip_scores,
        min_score_margin=settings.min_score_margin,
        token_budget=length,
    )


def _add_pair_scores(scores: np.ndarray, sums: Sums) -> None:
    """Add the scores of each clip with its own caption and with the caption of the next clip to the sums."""
    count = len(scores)
    if count < 2:
        return
    sums["num_pairs"] += count
    sums["matched_sum"] += float(np.trace(scores))
    sums["mismatched_sum"] += float(sum(scores[i, (i + 1) % count] for i in range(count)))
