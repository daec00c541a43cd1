"""The hash that identifies a model's weights, in the names of captioners and in checkpoints.

weights_hash(model.state_dict())          # "3f9a0c1d22be"
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """First 12 hex digits of the sha256 over names, types, shapes and bytes of all tensors.

    To be taken of the tensors as they are stored, before a model changes its type for a device.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
