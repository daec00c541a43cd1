"""How well a captioner knows footage like a clip, and with it how high its captions must score to be believed.

A clip score says that words and frames agree in the captioner's own space, and of footage that it knows nothing of it takes
dogs for toys in both. Where a clip lies far from all that was trained on, its captions therefore have to score higher:

    familiar = read_familiar(folder)
    familiar.least_scores(clip_BD)       (B,): the limit, less the mean cosine with the nearest clips of the training

One number of the training is kept per folder, and embeddings of a few hundred of its clips (`familiar.safetensors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "familiar.safetensors"


NUM_NEAREST = 5


@dataclass(frozen=True, slots=True)
class Familiar:
    """Clips of a training, and what score and familiarity of a caption worth keeping come to."""

    anchors_ND: np.ndarray
    """Contrastive embeddings, float32, unit length."""
    limit: float = 0.0
    """Least sum of clip score and familiarity."""

    def of(self, clip_BD: np.ndarray) -> np.ndarray:
        """(B,) mean cosine of each clip with its nearest anchors."""
        cosine_BN = clip_BD @ self.anchors_ND.T
        return np.sort(cosine_BN, axis=1)[:, -NUM_NEAREST:].mean(axis=1)

    def least_scores(self, clip_BD: np.ndarray) -> np.ndarray:
        """(B,) clip score below which a caption of each clip is rather wrong than right."""
        return self.limit - self.of(clip_BD)

    def write(self, folder: Path) -> None:
        from safetensors.numpy import save

        limit: np.ndarray = np.array([self.limit], np.float32)
        arrays = {"anchors": self.anchors_ND.astype(np.float16), "limit": limit}
        (folder / FILE).write_bytes(save(arrays))


def read_familiar(folder: Path) -> Familiar | None:
    """None where the folder has none."""
    from safetensors.numpy import load_file

    if not (folder / FILE).is_file():
        return None
    arrays = load_file(folder / FILE)
    return Familiar(arrays["anchors"].astype(np.float32), float(arrays["limit"][0]))
