"""A captioner measured on clips with reference captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recaption.captions.metrics import caption_scores, recall_at

if TYPE_CHECKING:
    from recaption.captioners.interface import Captioner


def measure_captioner(
    captioner: Captioner, clips: Sequence[np.ndarray], references: Sequence[Sequence[str]], **decoding: object
) -> dict[str, float]:
    """`caption_scores` of the captioner's own captions, and how well its two spaces agree with the first references.

    Args:
        clips: uint8 (T, H, W, 3) each, of any size.
        decoding: settings of `captioner.caption` (`num_beams=3`).

    Returns:
        `caption_scores`; retrieval/text_at_K: clip -> text, the right one among K; retrieval/clip_at_K: text -> clip;
        passed: share of captions that pass the gates; clip_score: mean cosine with their own caption. A captioner without
        contrastive space has no retrieval and no clip_score.
    """
    described = captioner.describe(clips, **decoding)  # type: ignore[arg-type]
    found = {
        **caption_scores([caption.text for caption in described.captions], references),
        "passed": float(np.mean([caption.reason is None for caption in described.captions])),
    }
    if described.clip_BD is None or described.text_BD is None:
        return found
    cosine_BS = captioner.score(clips, [several[0] for several in references])
    return {
        **found,
        **{f"retrieval/text_at_{k}": share for k, share in recall_at(cosine_BS).items()},
        **{f"retrieval/clip_at_{k}": share for k, share in recall_at(cosine_BS.T).items()},
        "clip_score": float((described.clip_BD * described.text_BD).sum(axis=1).mean()),
    }
