"""How good a captioner is on clips whose captions are known: what is logged while it trains, and what a card states.

evaluate(captioner, held_out_clips(SceneClips(held_out=True), 96, captioner))
{"cider_d": 1.2, ..., "retrieval/text": 0.9, "accuracy/colour": 0.98, "short/cider_d": 2.1, "asked/colour": 0.97, ...}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from recaption.captioners.interface import Captioner
from recaption.captioners.preprocess import FramePreprocessor
from recaption.captions.metrics import caption_scores, recall_at
from recaption.records import CaptionFields
from recaption.scenes.captions import fields_in
from train.captioner.clips import CaptionClips, CaptionedClip
from train.captioner.scene_clips import FIRST_HELD_OUT_SEED, held_out_scene, scene_captions

FIELDS = tuple(field.name for field in dataclasses.fields(CaptionFields))


MAX_FIELD_TOKENS = 16
"""The longest field has two words; a captioner that does not know the kind yet would fill its context."""


@runtime_checkable
class _LooksOnce(Protocol):
    """A captioner whose encoded clips can be described and scored again and again."""

    def encode(self, clips: Sequence[np.ndarray]) -> list[Any]: ...


class _Framed(Protocol):
    preprocessor: FramePreprocessor
    num_frames: int


def held_out_clips(clips: CaptionClips, count: int, captioner: _Framed) -> list[CaptionedClip]:
    """The first `count` clips of a source, framed for the captioner."""
    count = count if clips.num_clips is None else min(count, clips.num_clips)
    return [clips.clip(number, captioner.preprocessor, num_frames=captioner.num_frames) for number in range(count)]


def evaluate(captioner: Captioner, clips: Sequence[CaptionedClip]) -> dict[str, float]:
    """Greedy captions and retrieval on `clips`, which the captioner was not trained on.

    Returns:
        cider_d, bleu_1 ... bleu_4, rouge_l: descriptive captions against all descriptive references (the first kind that
            the clips have, where they have no descriptive ones). CIDEr-D depends on the set: compare on the same clips.
        <kind>/cider_d, <kind>/rouge_l: the same for the short kind, where captioner and clips both have it.
        retrieval/text, retrieval/text_at_5, ..._at_10: recall of the own caption among those of all clips; /clip: back.
        accuracy/<field>: where the truth is known, share of clips whose descriptive caption names the field's true word
            (and none, where there is none). accuracy/all_fields: all at once. accuracy/mean: mean over fields.
        asked/<field>: the same when asked for that field alone.
        ended: share of captions that pass the gates.
    """
    pixels = [clip.pixels_THWC for clip in clips]
    seen = captioner.encode(pixels) if isinstance(captioner, _LooksOnce) else pixels
    main = next(kind for kind in ("descriptive", *clips[0].captions) if clips[0].captions.get(kind))
    captions = captioner.caption(seen)
    references = [clip.captions.get(main) or next(iter(clip.captions.values())) for clip in clips]
    cosine = captioner.score(seen, [several[0] for several in references])
    to_text, to_clip = recall_at(cosine), recall_at(cosine.T)
    found = {
        **caption_scores([caption.text for caption in captions], references),
        "retrieval/text": to_text[1],
        **{f"retrieval/text_at_{k}": to_text[k] for k in (5, 10)},
        "retrieval/clip": to_clip[1],
        **{f"retrieval/clip_at_{k}": to_clip[k] for k in (5, 10)},
        "ended": float(np.mean([caption.reason is None for caption in captions])),
    }
    if any(clip.truth != CaptionFields() for clip in clips):
        found |= _field_accuracy([fields_in(caption.text) for caption in captions], [clip.truth for clip in clips])
    for kind in getattr(captioner, "kinds", ()):
        if kind != main and all(clip.captions.get(kind) for clip in clips):
            found |= _of_kind(captioner, kind, seen, [clip.captions[kind] for clip in clips])
    return found


def _field_accuracy(said: Sequence[CaptionFields], truths: Sequence[CaptionFields]) -> dict[str, float]:
    hits = np.array(
        [
            [getattr(one, field) == getattr(truth, field) for field in FIELDS]
            for one, truth in zip(said, truths, strict=True)
        ]
    )
    return {
        **{f"accuracy/{field}": float(share) for field, share in zip(FIELDS, hits.mean(axis=0), strict=True)},
        "accuracy/mean": float(hits.mean()),
        "accuracy/all_fields": float(hits.all(axis=1).mean()),
    }


def _of_kind(
    captioner: Captioner, kind: str, seen: Sequence[Any], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    limit = {"max_tokens": MAX_FIELD_TOKENS} if kind in FIELDS else {}
    texts = [caption.text for caption in captioner.caption(seen, kind=kind, **limit)]  # type: ignore[call-arg, arg-type]
    if kind in FIELDS:
        right = [
            text.lower().rstrip(".") in [reference.lower() for reference in several]
            for text, several in zip(texts, references, strict=True)
        ]
        return {f"asked/{kind}": float(np.mean(right))}
    scores = caption_scores(texts, references)
    return {f"{kind}/{name}": scores[name] for name in ("cider_d", "bleu_4", "rouge_l")}


def evaluate_on_scenes(
    captioner: Captioner, num_scenes: int, first_seed: int = FIRST_HELD_OUT_SEED, *, only_unseen_pairs: bool = False
) -> dict[str, float]:
    """`evaluate` on held-out scenes at their own size and length."""
    scenes = [
        held_out_scene(number, first_seed=first_seed, only_unseen_pairs=only_unseen_pairs)
        for number in range(num_scenes)
    ]
    return evaluate(
        captioner,
        [
            CaptionedClip(
                clip_id=f"scene-{scene.seed}",
                pixels_THWC=scene.frames_THWC,
                captions=scene_captions(scene),
                truth=scene.fields,
            )
            for scene in scenes
        ],
    )
