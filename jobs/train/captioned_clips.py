"""`recaption train captioner --captions SET...`: which clips of a run folder are learned from, and what is said of them.

    captioned_clips(run, recipe, ("original=short", "main"))

SET is a caption set of the folder, or `original`: the texts that came with the videos. `=KIND` says what kind of caption
they are; the captions of a set say it themselves, original texts are descriptive unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from jobs.recipe.run_inputs import kept_clips
from jobs.recipe.settings import Recipe
from recaption.captions.text import CAPTION_KINDS, normalize_text
from recaption.errors import UsageError
from recaption.inputs.sidecars import read_sidecar_caption
from recaption.records import Caption, Clip, from_table
from recaption.run_folder import RunFolder
from train.captioner.run_clips import RunClip

ORIGINAL = "original"


def captioned_clips(run: RunFolder, recipe: Recipe, sets: Sequence[str]) -> list[RunClip]:
    """Every kept clip with at least one text, in order. Captions that failed a gate teach nothing and are left out.

    A text that came with a video is taken to be true of each of its clips.

    Raises:
        UsageError: no such caption set or kind, no clips, or none with a text.
    """
    clips = {clip.clip_id: clip for part in kept_clips(run, recipe, before_captions=True).values() for clip in part}
    texts: dict[str, dict[str, list[str]]] = {}
    for one in sets:
        name, _, kind = one.partition("=")
        if kind and kind not in CAPTION_KINDS:
            raise UsageError(f"--captions {one}: there is no kind {kind!r}; there are {', '.join(CAPTION_KINDS)}")
        found = _originals(clips.values()) if name == ORIGINAL else _of_set(run, name)
        for clip_id, own_kind, text in found:
            several = texts.setdefault(clip_id, {}).setdefault(kind or own_kind, [])
            if text not in several:
                several.append(text)
    captioned = [
        RunClip(clip=clip, captions={kind: tuple(several) for kind, several in texts[clip_id].items()})
        for clip_id, clip in clips.items()
        if clip_id in texts
    ]
    if not captioned:
        where = "a .txt of the same name beside each video" if ORIGINAL in sets else "captions that passed their gates"
        raise UsageError(
            f"none of the {len(clips)} kept clips of {run.uri} has a text in {', '.join(sets)}: no {where}"
        )
    return captioned


def _originals(clips: Iterable[Clip]) -> Iterator[tuple[str, str, str]]:
    of_uri: dict[str, str] = {}
    for clip in clips:
        if clip.uri not in of_uri:
            of_uri[clip.uri] = normalize_text(read_sidecar_caption(clip.uri))
        if of_uri[clip.uri]:
            yield clip.clip_id, "descriptive", of_uri[clip.uri]


def _of_set(run: RunFolder, name: str) -> Iterator[tuple[str, str, str]]:
    parts = run.list(f"captions/{name}/part-*.parquet")
    if not parts:
        raise UsageError(f"{run.uri} has no caption set {name!r}: run `recaption caption --set {name}` first")
    for part in parts:
        for row in from_table(run.read_table(part), Caption):
            if row.source == "model" and row.reason is None and not row.window:
                yield row.clip_id, row.kind, row.text
