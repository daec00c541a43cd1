"""Captioner evaluation: caption metrics, retrieval, and field accuracy on clips with reference captions.

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
from recaption.scenes.splits import FIRST_HELD_OUT_SEED, held_out_scene
from train.captioner.clips import CaptionClips, CaptionedClip
from train.captioner.scene_clips import captioned_clip

FIELDS = tuple(field.name for field in dataclasses.fields(CaptionFields))
MAX_FIELD_TOKENS = 16
"""The longest field has two words; a captioner not yet trained on the kind would fill its context."""


@runtime_checkable
class _HasEncode(Protocol):
    """A captioner whose encoded clips can be reused for captioning and scoring."""

    def encode(self, clips: Sequence[np.ndarray]) -> list[Any]: ...


class _Framed(Protocol):
    preprocessor: FramePreprocessor
    num_frames: int


def held_out_clips(clips: CaptionClips, count: int, captioner: _Framed) -> list[CaptionedClip]:
    """The first `count` clips of a source, framed for the captioner."""
    count = count if clips.num_clips is None else min(count, clips.num_clips)
    return [clips.clip(number, captioner.preprocessor, num_frames=captioner.num_frames) for number in range(count)]


def evaluate(captioner: Captioner, clips: Sequence[CaptionedClip]) -> dict[str, float]:
    """Evaluate with default decoding on held-out `clips`.

    Returns:
        cider_d, bleu_1 ... bleu_4, rouge_l: descriptive captions against all descriptive references (or the clips'
            first kind, if they have no descriptive ones). CIDEr-D depends on the set: compare on the same clips.
        <kind>/cider_d, <kind>/rouge_l: the same for the short kind, if captioner and clips have it.
        retrieval/text, retrieval/text_at_5, ..._at_10: clip-to-text recall at 1, 5, 10; retrieval/clip: text-to-clip.
        accuracy/<field>: if the truth is known, fraction of clips whose descriptive caption has the field's true word
            (or no word, if the field is empty). accuracy/all_fields: all fields at once. accuracy/mean: mean over fields.
        asked/<field>: the same for captions of that kind alone.
        ended: fraction of captions that pass the caption gates.
    """
    pixels = [clip.pixels_THWC for clip in clips]
    encoded = captioner.encode(pixels) if isinstance(captioner, _HasEncode) else pixels
    main = next(kind for kind in ("descriptive", *clips[0].captions) if clips[0].captions.get(kind))
    captions = captioner.caption(encoded)
    references = [clip.captions.get(main) or next(iter(clip.captions.values())) for clip in clips]
    cosine = captioner.score(encoded, [texts[0] for texts in references])
    to_text, to_clip = recall_at(cosine), recall_at(cosine.T)
    metrics = {
        **caption_scores([caption.text for caption in captions], references),
        "retrieval/text": to_text[1],
        **{f"retrieval/text_at_{k}": to_text[k] for k in (5, 10)},
        "retrieval/clip": to_clip[1],
        **{f"retrieval/clip_at_{k}": to_clip[k] for k in (5, 10)},
        "ended": float(np.mean([caption.reason is None for caption in captions])),
    }
    if any(clip.truth != CaptionFields() for clip in clips):
        metrics |= _field_accuracy([fields_in(caption.text) for caption in captions], [clip.truth for clip in clips])
    for kind in getattr(captioner, "kinds", ()):
        if kind != main and all(clip.captions.get(kind) for clip in clips):
            metrics |= _metrics_of_kind(captioner, kind, encoded, [clip.captions[kind] for clip in clips])
    return metrics


def _field_accuracy(predictions: Sequence[CaptionFields], truths: Sequence[CaptionFields]) -> dict[str, float]:
    hits = np.array(
        [
            [getattr(prediction, field) == getattr(truth, field) for field in FIELDS]
            for prediction, truth in zip(predictions, truths, strict=True)
        ]
    )
    return {
        **{f"accuracy/{field}": float(accuracy) for field, accuracy in zip(FIELDS, hits.mean(axis=0), strict=True)},
        "accuracy/mean": float(hits.mean()),
        "accuracy/all_fields": float(hits.all(axis=1).mean()),
    }


def _metrics_of_kind(
    captioner: Captioner, kind: str, encoded: Sequence[Any], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    limit = {"max_tokens": MAX_FIELD_TOKENS} if kind in FIELDS else {}
    texts = [caption.text for caption in captioner.caption(encoded, kind=kind, **limit)]  # type: ignore[call-arg, arg-type]
    if kind in FIELDS:
        correct = [
            text.lower().rstrip(".") in [reference.lower() for reference in valid]
            for text, valid in zip(texts, references, strict=True)
        ]
        return {f"asked/{kind}": float(np.mean(correct))}
    scores = caption_scores(texts, references)
    return {f"{kind}/{name}": scores[name] for name in ("cider_d", "bleu_4", "rouge_l")}


def matched_auc(cosine_NN: np.ndarray) -> float:
    """AUC of clip-text scores: the probability that a matching pair (diagonal) scores above a mismatched one."""
    matched = np.diag(cosine_NN)
    mismatched = np.sort(cosine_NN[~np.eye(len(cosine_NN), dtype=bool)])
    return float(np.searchsorted(mismatched, matched, side="left").mean() / len(mismatched))


def evaluate_on_scenes(
    captioner: Captioner, num_scenes: int, first_seed: int = FIRST_HELD_OUT_SEED, *, only_unseen_pairs: bool = False
) -> dict[str, float]:
    """`evaluate` on held-out scenes at their native size and length."""
    scenes = [
        held_out_scene(number, first_seed=first_seed, only_unseen_pairs=only_unseen_pairs)
        for number in range(num_scenes)
    ]
    return evaluate(captioner, [captioned_clip(scene, scene.frames_THWC) for scene in scenes])
