"""Out-of-domain check: the less similar a clip is to training clips, the higher the minimum clip score of its captions.

Clip scores come from the captioner's own embedding space, where footage unlike the training data is misjudged too: a wrong
caption of it can score high. The minimum is a calibrated constant minus the clip's kNN similarity to training clips:

    anchors = read_training_anchors(folder)
    anchors.min_clip_scores(clip_embeddings_BD)       # (B,)

The file `familiar.safetensors` holds the constant (`limit`) and embeddings of a few hundred training clips (`anchors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

ANCHORS_FILE = "familiar.safetensors"
NUM_NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class TrainingAnchors:
    """Embeddings of training clips, and the calibrated minimum of clip score plus similarity."""

    anchors_ND: np.ndarray
    """Contrastive embeddings, float32, unit length."""
    min_score_plus_similarity: float = 0.0
    """Minimum of clip score + kNN similarity for a good caption."""

    def knn_similarity(self, clip_embeddings_BD: np.ndarray) -> np.ndarray:
        """(B,) mean cosine between each clip and its `NUM_NEIGHBOURS` nearest anchors."""
        cosine_BN = clip_embeddings_BD @ self.anchors_ND.T
        return np.sort(cosine_BN, axis=1)[:, -NUM_NEIGHBOURS:].mean(axis=1)

    def min_clip_scores(self, clip_embeddings_BD: np.ndarray) -> np.ndarray:
        """(B,) clip score below which a caption of the clip is more often wrong than right."""
        return self.min_score_plus_similarity - self.knn_similarity(clip_embeddings_BD)

    def write(self, folder: Path) -> None:
        from safetensors.numpy import save

        limit: np.ndarray = np.array([self.min_score_plus_similarity], np.float32)
        arrays = {"anchors": self.anchors_ND.astype(np.float16), "limit": limit}
        (folder / ANCHORS_FILE).write_bytes(save(arrays))


def read_training_anchors(folder: Path) -> TrainingAnchors | None:
    """Read the anchors of a captioner folder; None if it has no such file."""
    from safetensors.numpy import load_file

    if not (folder / ANCHORS_FILE).is_file():
        return None
    arrays = load_file(folder / ANCHORS_FILE)
    return TrainingAnchors(arrays["anchors"].astype(np.float32), float(arrays["limit"][0]))
