"""Cached features of the frozen EfficientNet for the tiny captioner's training clips.

Per clip, the frozen network costs twenty times as much as a training step, and its features never change: clips are
rendered and encoded once, in parts that several processes may compute in parallel, and trained on many times.

    write_part(Part("photos", 3), photos, folder)
    clips = read_part(folder, Part("photos", 3))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from photo_clips import Photo, photo_clip
from safetensors.torch import load_file, save_file
from torch import Tensor

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.videococa.efficientnet import COARSE_CHANNELS, load_backbone
from recaption.captioners.videococa.two_path import (
    FAST_PATHWAY_PX,
    FRAME_PX,
    NUM_FRAMES,
    slow_frame_indices,
    slow_pathway_features,
)
from train.captioner.scene_clips import SceneClips

CLIPS_PER_PART = 500


NUM_COMPONENTS = 224
"""Principal components kept of the last map's 1,280 channels; the projection is folded into the exported weights."""


PREPROCESSOR = FramePreprocessor(
    frame_px=FRAME_PX, fit="squash", interpolation="bilinear", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)


_BATCH = 10


@dataclass(frozen=True, slots=True)
class Part:
    """A block of `CLIPS_PER_PART` clips of one source."""

    source: str
    """`photos` or `scenes`."""
    index: int

    @property
    def name(self) -> str:
        return f"{self.source}-{self.index:04d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedClips:
    """Features and captions of one part. N clips, S frames, L cells."""

    semantic_NSLC: np.ndarray
    """float16 reduced features of the frozen network."""
    motion_NTHWC: np.ndarray
    """uint8: all frames at FAST_PATHWAY_PX."""
    long_captions: list[list[str]]
    short_captions: list[list[str]]
    motions: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """PCA of the coarse feature map and normalisation of the fine one."""

    mean_C: Tensor
    basis_CK: Tensor
    """Whitening: columns are divided by the standard deviation along them."""
    fine_mean_C: Tensor
    fine_std_C: Tensor

    def reduce(self, fine_BLC: Tensor, coarse_BLC: Tensor) -> Tensor:
        return torch.cat(
            [(fine_BLC - self.fine_mean_C) / self.fine_std_C, (coarse_BLC - self.mean_C) @ self.basis_CK], dim=-1
        )


class FrozenFeatureExtractor:
    """The frozen network in bfloat16, three times as fast on CPUs that support it."""

    def __init__(self) -> None:
        self.tower = load_backbone().to(torch.bfloat16).to(memory_format=torch.channels_last)

    def maps(self, clips_BTHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Fine and coarse feature maps, (B, S, L, C) float32."""
        frames = clips_BTHWC[:, slow_frame_indices(clips_BTHWC.shape[1])]
        with torch.inference_mode():
            pixels = PREPROCESSOR.normalise(torch.from_numpy(frames)).to(torch.bfloat16)
            fine, coarse = slow_pathway_features(self.tower, pixels)
        return fine.float(), coarse.float()


def load_components(folder: Path, photos: Sequence[Photo], extractor: FrozenFeatureExtractor) -> Components:
    """Load the PCA from the folder, or fit it on a few hundred clips and save it."""
    path = folder / "components.safetensors"
    if path.is_file():
        return Components(**load_file(path))
    scenes = [SceneClips().clip(3 * i + 1, PREPROCESSOR, num_frames=NUM_FRAMES).pixels_THWC for i in range(160)]
    photo_numbers = range(400 if photos else 0)
    clips = [
        photo_clip(photos, 13 * i + 1, frame_px=FRAME_PX, num_frames=NUM_FRAMES).pixels_THWC for i in photo_numbers
    ]
    components = fit_components(np.stack(clips + scenes), extractor)
    save_file({field.name: getattr(components, field.name).contiguous() for field in fields(components)}, path)
    return components


def fit_components(clips_BTHWC: np.ndarray, extractor: FrozenFeatureExtractor) -> Components:
    """PCA over all cells of the clips."""
    parts = [extractor.maps(clips_BTHWC[i : i + _BATCH]) for i in range(0, len(clips_BTHWC), _BATCH)]
    fine, coarse = (torch.cat(maps) for maps in zip(*parts, strict=True))
    cells = coarse.reshape(-1, COARSE_CHANNELS).double()
    mean = cells.mean(0)
    variance, basis = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
    variance, basis = variance.flip(0)[:NUM_COMPONENTS], basis.flip(1)[:, :NUM_COMPONENTS]
    flat = fine.flatten(0, 2)
    return Components(
        mean_C=mean.float(),
        basis_CK=(basis / variance.clamp(min=1e-6).sqrt()).float(),
        fine_mean_C=flat.mean(0),
        fine_std_C=flat.std(0).clamp(min=1e-3),
    )


def render_part(part: Part, photos: Sequence[Photo]) -> tuple[np.ndarray, dict[str, list]]:
    """(clips_NTHWC, captions and motions)."""
    clips, long, short, motions = [], [], [], []
    for number in range(part.index * CLIPS_PER_PART, (part.index + 1) * CLIPS_PER_PART):
        if part.source == "photos":
            clip = photo_clip(photos, number, frame_px=FRAME_PX, num_frames=NUM_FRAMES)
            clips.append(clip.pixels_THWC)
            long.append(list(clip.captions))
            short.append(list(clip.plain_captions))
            motions.append(clip.motion)
        else:
            scene = SceneClips().clip(number, PREPROCESSOR, num_frames=NUM_FRAMES)
            clips.append(scene.pixels_THWC)
            long.append(list(scene.captions["descriptive"]))
            short.append(list(scene.captions["short"]))
            motions.append(scene.truth.action)
    return np.stack(clips), {"long": long, "short": short, "motion": motions}


def write_part(
    part: Part, photos: Sequence[Photo], folder: Path, components: Components, extractor: FrozenFeatureExtractor
) -> None:
    """Render one part, extract its features and write them; skipped if the part exists."""
    if (folder / f"{part.name}.json").is_file():
        return
    clips_NTHWC, texts = render_part(part, photos)
    semantic = []
    for start in range(0, len(clips_NTHWC), _BATCH):
        fine, coarse = extractor.maps(clips_NTHWC[start : start + _BATCH])
        semantic.append(components.reduce(fine, coarse).half().numpy())
    small = _downsample(clips_NTHWC)
    np.save(folder / f"{part.name}.semantic.npy", np.concatenate(semantic))
    np.save(folder / f"{part.name}.motion.npy", small)
    (folder / f"{part.name}.json").write_text(json.dumps(texts), encoding="utf-8")


def _downsample(clips_NTHWC: np.ndarray) -> np.ndarray:
    """Area downsampling to FAST_PATHWAY_PX, as in the motion path."""
    side = FRAME_PX // FAST_PATHWAY_PX
    total = np.full((*clips_NTHWC.shape[:2], FAST_PATHWAY_PX, FAST_PATHWAY_PX, 3), side * side // 2, np.uint16)
    for y in range(side):
        for x in range(side):
            total += clips_NTHWC[:, :, y::side, x::side]
    return (total // (side * side)).astype(np.uint8)


def read_part(folder: Path, part: Part) -> CachedClips:
    texts = json.loads((folder / f"{part.name}.json").read_text(encoding="utf-8"))
    return CachedClips(
        semantic_NSLC=np.load(folder / f"{part.name}.semantic.npy"),
        motion_NTHWC=np.load(folder / f"{part.name}.motion.npy"),
        long_captions=texts["long"],
        short_captions=texts["short"],
        motions=texts["motion"],
    )
