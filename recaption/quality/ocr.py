"""OCR scores: area of text boxes found by the PP-OCRv4 detector (Apache-2.0, package rapidocr-onnxruntime).

Text is detected, not recognised.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from recaption.quality.model_scorers import ScorerUnavailableError, missing_package_reason

if TYPE_CHECKING:
    from recaption.quality.scores import ScoreSettings


SHORT_SIDE_PX = 384
"""Frames arrive with 256 px and are upscaled to this. Measured on 15 real clips with text lines of 4 % of the height: all
are found, against every second one at 256 px, with as few false boxes, at 2.3 times the cost (0.08 CPU-s a frame)."""
MIN_ASPECT, MIN_VERTICAL_ASPECT = 1.6, 3.0
"""Minimum width / height of a horizontal text line, and height / width of a vertical one: false positives of the detector
(toys, cars, flowers) are often as tall as wide."""
MIN_STATIC_FRACTION = 0.8
"""Fraction of the frames in which a pixel must be inside a text box to count as static text."""
MIN_FRAMES = 3


class OcrScorer:
    """Fraction of the frame inside text boxes: the mean over frames, and of pixels inside a box in nearly all frames."""

    columns = ("text_area_ocr", "static_text_ocr")

    def __init__(self, settings: ScoreSettings) -> None:
        if reason := self.unavailable_reason(settings):
            raise ScorerUnavailableError(reason)
        import rapidocr_onnxruntime
        import yaml
        from rapidocr_onnxruntime.ch_ppocr_det import TextDetector

        folder = Path(rapidocr_onnxruntime.__file__).parent
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["Det"]
        config |= {"model_path": str(folder / config["model_path"]), "limit_side_len": SHORT_SIDE_PX}
        config |= {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
        self._detector = TextDetector(config)

    @staticmethod
    def unavailable_reason(settings: ScoreSettings) -> str | None:
        return missing_package_reason("rapidocr_onnxruntime")

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        text_THW = np.stack([self._text_mask(frame) for frame in frames_THWC])
        static_HW = text_THW.mean(axis=0) >= MIN_STATIC_FRACTION
        return {
            "text_area_ocr": float(text_THW.mean()),
            "static_text_ocr": float(static_HW.mean()) if len(text_THW) >= MIN_FRAMES else None,
        }

    def _text_mask(self, frame_HWC: np.ndarray) -> np.ndarray:
        """(H, W) bool: pixels inside a text box."""
        boxes, _ = self._detector(np.ascontiguousarray(frame_HWC[..., ::-1]))
        inside_HW = np.zeros(frame_HWC.shape[:2], np.uint8)
        for box in boxes if boxes is not None else ():
            if _is_line(box):
                cv2.fillConvexPoly(inside_HW, np.asarray(box, np.int32), 1)
        return inside_HW.astype(bool)


def _is_line(corners_42: np.ndarray) -> bool:
    """Whether a box (corners clockwise from the top left) is elongated like a text line."""
    width, height = (float(np.linalg.norm(corners_42[a] - corners_42[0])) for a in (1, 3))
    return width >= MIN_ASPECT * height or height >= MIN_VERTICAL_ASPECT * width
