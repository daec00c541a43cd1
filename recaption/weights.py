"""The hash that identifies a model's weights, in the names of captioners and in checkpoints.

weights_hash(model.state_dict())          # "3f9a0c1d22be"
weights_hash(stored_tensors([Path("model-00001-of-00002.safetensors"), Path("model-00002-of-00002.safetensors")]))

It is that of the tensors as they are stored: the same on every device, in every precision that a model is run in, and
however the tensors are spread over files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """First 12 hex digits of the sha256 over names, types, shapes and bytes of all tensors.

    To be taken of the tensors as they are stored, before a model changes its type for a device.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def stored_tensors(paths: Sequence[Path]) -> Mapping[str, Tensor]:
    """The tensors of several files by name, each read when it is asked for: safetensors, or torch's without any code.

    Raises:
        ValueError: a file is damaged, or of another kind.
    """
    import torch
    from safetensors import safe_open

    readers: dict[str, Callable[[], Tensor]] = {}
    for path in paths:
        try:
            if path.suffix == ".safetensors":
                stored = safe_open(path, framework="pt")
                readers |= {name: partial(stored.get_tensor, name) for name in stored.keys()}  # noqa: SIM118
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True)
                readers |= {name: tensor.clone for name, tensor in tensors.items()}
        except Exception as error:  # safetensors, pickle and torch share no base exception
            reason = str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
            raise ValueError(f"{path} cannot be read as weights: {reason}") from error
    return _Stored(readers)


class _Stored(Mapping[str, "Tensor"]):
    def __init__(self, readers: dict[str, Callable[[], Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)
