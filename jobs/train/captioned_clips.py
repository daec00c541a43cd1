"""Training clips and captions for `recaption train captioner --captions SET...`, from a run folder.

    captioned_clips(run, recipe, ("original=short", "main"))

SET is a caption set of the folder, or `original` for the sidecar texts of the videos. `=KIND` sets the caption kind; by
default captions of a set have their own kinds, and original texts are descriptive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from jobs.recipe.run_inputs import kept_clips
from jobs.recipe.settings import Recipe
from recaption.captions.text import CAPTION_KINDS, normalize_text
from recaption.errors import UsageError
from recaption.inputs.sidecars import read_sidecar_caption
from recaption.ledger.spans import SPAN_PARTS, texts_of
from recaption.records import Caption, Clip, from_table
from recaption.run_folder import RunFolder
from train.captioner.run_clips import RunClip

ORIGINAL = "original"
TEXT_COLUMNS = ("clip_ids", "texts")


def captioned_clips(run: RunFolder, recipe: Recipe, sets: Sequence[str]) -> list[RunClip]:
    """Every kept clip with at least one caption, in order; captions that failed a quality gate are left out.

    Original texts are those that lists have for a clip, else the sidecar text of its video.

    Raises:
        UsageError: no such caption set or kind, no clips, or no clip with a caption.
    """
    clips = {clip.clip_id: clip for part in kept_clips(run, recipe, before_captions=True).values() for clip in part}
    texts: dict[str, dict[str, list[str]]] = {}
    for one in sets:
        name, _, kind = one.partition("=")
        if kind and kind not in CAPTION_KINDS:
            raise UsageError(f"--captions {one}: there is no kind {kind!r}; there are {', '.join(CAPTION_KINDS)}")
        found = _originals(run, clips.values()) if name == ORIGINAL else _captions_of_set(run, name)
        for clip_id, caption_kind, text in found:
            texts_of_kind = texts.setdefault(clip_id, {}).setdefault(kind or caption_kind, [])
            if text not in texts_of_kind:
                texts_of_kind.append(text)
    captioned = [
        RunClip(clip=clip, captions={kind: tuple(texts_of_kind) for kind, texts_of_kind in texts[clip_id].items()})
        for clip_id, clip in clips.items()
        if clip_id in texts
    ]
    if not captioned:
        where = (
            "a .txt file of the same name next to each video"
            if ORIGINAL in sets
            else "captions that passed their gates"
        )
        raise UsageError(
            f"none of the {len(clips)} kept clips of {run.uri} has a text in {', '.join(sets)}: no {where}"
        )
    return captioned


def _originals(run: RunFolder, clips: Iterable[Clip]) -> Iterator[tuple[str, str, str]]:
    """All texts that lists have for a clip, else the one beside its video."""
    text_of_uri: dict[str, str] = {}
    listed = texts_of(row for name in run.list(SPAN_PARTS) for row in run.read_columns(name, TEXT_COLUMNS).to_pylist())
    for clip in clips:
        if clip.clip_id in listed:
            yield from (
                (clip.clip_id, "descriptive", text) for one in listed[clip.clip_id] if (text := normalize_text(one))
            )
            continue
        if clip.uri not in text_of_uri:
            text_of_uri[clip.uri] = normalize_text(read_sidecar_caption(clip.uri))
        if text_of_uri[clip.uri]:
            yield clip.clip_id, "descriptive", text_of_uri[clip.uri]


def _captions_of_set(run: RunFolder, name: str) -> Iterator[tuple[str, str, str]]:
    parts = run.list(f"captions/{name}/part-*.parquet")
    if not parts:
        raise UsageError(f"{run.uri} has no caption set {name!r}: run `recaption caption --set {name}` first")
    for part in parts:
        for row in from_table(run.read_table(part), Caption):
            if row.source == "model" and row.reason is None and not row.window:
                yield row.clip_id, row.kind, row.text
