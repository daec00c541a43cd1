"""Drawn text: the detector of PP-OCRv4 (Apache-2.0, inside the package rapidocr-onnxruntime). Boxes only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from recaption.quality.model_scorers import AbsentError, why_missing

if TYPE_CHECKING:
    from recaption.quality.scores import ScoreSettings


SHORT_SIDE_PX = 384
"""Frames come with 256 px and are enlarged to this: of lines of 4 % of the height drawn on 15 real clips the detector then
finds all, of those at 256 px every second one, with as few false boxes, at 2.3 times the cost (0.08 CPU-s a frame)."""


LEAST_ASPECT, LEAST_VERTICAL_ASPECT = 1.6, 3.0
"""Width over height of a line of text, and height over width of one that runs downwards: what the detector takes for text
and is none is often as tall as wide (toys, cars, flowers)."""


STAYING_SHARE = 0.8
"""Of the frames, those in which a place must be text for the text to be one that stays."""


LEAST_FRAMES = 3


class OcrScorer:
    """Share of the frame inside text boxes, mean over frames; and of the places that are text in nearly all of them."""

    columns = ("text_area_ocr", "static_text_ocr")

    def __init__(self, settings: ScoreSettings) -> None:
        if reason := self.why_absent(settings):
            raise AbsentError(reason)
        import rapidocr_onnxruntime
        import yaml
        from rapidocr_onnxruntime.ch_ppocr_det import TextDetector

        folder = Path(rapidocr_onnxruntime.__file__).parent
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["Det"]
        config |= {"model_path": str(folder / config["model_path"]), "limit_side_len": SHORT_SIDE_PX}
        config |= {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
        self._detector = TextDetector(config)

    @staticmethod
    def why_absent(settings: ScoreSettings) -> str | None:
        return why_missing("rapidocr_onnxruntime")

    def score(self, frames_THWC: np.ndarray) -> dict[str, float | None]:
        text_THW = np.stack([self._text(frame) for frame in frames_THWC])
        staying = text_THW.mean(axis=0) >= STAYING_SHARE
        return {
            "text_area_ocr": float(text_THW.mean()),
            "static_text_ocr": float(staying.mean()) if len(text_THW) >= LEAST_FRAMES else None,
        }

    def _text(self, frame_HWC: np.ndarray) -> np.ndarray:
        """(H, W) bool: inside a box."""
        boxes, _ = self._detector(np.ascontiguousarray(frame_HWC[..., ::-1]))
        inside_HW = np.zeros(frame_HWC.shape[:2], np.uint8)
        for box in boxes if boxes is not None else ():
            if _is_line(box):
                cv2.fillConvexPoly(inside_HW, np.asarray(box, np.int32), 1)
        return inside_HW.astype(bool)


def _is_line(corners_42: np.ndarray) -> bool:
    """Whether a box (corners clockwise from the top left) is as long as a word."""
    along, down = (float(np.linalg.norm(corners_42[a] - corners_42[0])) for a in (1, 3))
    return along >= LEAST_ASPECT * down or down >= LEAST_VERTICAL_ASPECT * along
