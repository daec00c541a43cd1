"""Evaluates a captioner on clips with reference captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recaption.captions.metrics import caption_scores, recall_at

if TYPE_CHECKING:
    from recaption.captioners.interface import Captioner


def evaluate_captioner(
    captioner: Captioner, clips: Sequence[np.ndarray], references: Sequence[Sequence[str]], **decoding: object
) -> dict[str, float]:
    """Caption metrics of the generated captions, and clip-text retrieval with the first reference of each clip.

    Args:
        clips: uint8 (T, H, W, 3) each, of any size.
        decoding: settings of `captioner.caption` (`num_beams=3`).

    Returns:
        The metrics of `caption_scores`; retrieval/text_at_K: recall at K, clip to text; retrieval/clip_at_K: text to
        clip; passed: fraction of captions without fault; clip_score: mean cosine of a clip and its caption. Without a
        contrastive head there is no retrieval and no clip_score.
    """
    described = captioner.caption_with_embeddings(clips, **decoding)  # type: ignore[arg-type]
    metrics = {
        **caption_scores([caption.text for caption in described.captions], references),
        "passed": float(np.mean([caption.reason is None for caption in described.captions])),
    }
    if described.clip_embeddings_BD is None or described.text_embeddings_BD is None:
        return metrics
    cosine_BB = captioner.score(clips, [texts[0] for texts in references])
    return {
        **metrics,
        **{f"retrieval/text_at_{k}": recall for k, recall in recall_at(cosine_BB).items()},
        **{f"retrieval/clip_at_{k}": recall for k, recall in recall_at(cosine_BB.T).items()},
        "clip_score": float((described.clip_embeddings_BD * described.text_embeddings_BD).sum(axis=1).mean()),
    }
