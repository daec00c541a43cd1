"""VideoCoCa with two pathways, SlowFast-style: a frozen backbone on few frames, small trained convolutions on all frames.

Slow pathway: three of the eight frames go through the frozen EfficientNet at full resolution (object appearance). Fast
pathway: all eight frames at a third of the resolution go through a few convolutions with the frames as channels, so that
every filter sees the whole clip (motion). The tokens of both pathways are joined in transformer layers and in CoCa's
attentional pooler. The frozen weights are not part of the captioner's state dict: they come with a package of their own.

    model = build_two_path(coca, {"frozen": FROZEN_BACKBONE, "width": 160, "queries": 33, "joint_layers": 1})
    embedding = model.encode_clips(pixels_BTCHW)

Shapes: B clips, T frames, S frames of the slow pathway, L cells per frame, C channels, D width, N pooled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.captioners.preprocess import uniform_frame_indices
from recaption.captioners.videococa.efficientnet import (
    COARSE_CHANNELS,
    FINE_CHANNELS,
    STRIDE_PX,
    EfficientNetLite0,
    load_backbone,
    weights_file,
)
from recaption.captioners.videococa.model import VideoCoCa
from recaption.errors import UsageError

FROZEN_BACKBONE = "efficientnet-lite0"
"""Value of `vision.frozen` in config.json."""
FRAME_PX = 192
"""Frame side in the slow pathway."""
NUM_FRAMES = 8
"""Frames of the fast pathway."""
NUM_SLOW_FRAMES = 3
FAST_PATHWAY_PX = 64
"""Frame side in the fast pathway."""
CELLS = FRAME_PX // STRIDE_PX
"""Cells per side of the coarse feature map."""
FINE_CELL = 4 * FINE_CHANNELS
"""Channels of the fine map per coarse cell: 2 x 2 fine cells, concatenated."""
_NUM_FAST_TOKENS = 16
"""4 x 4 cells: the fast pathway halves `FAST_PATHWAY_PX` four times."""
HEAD_WIDTH = 32
"""Width of an attention head."""
NUM_EDGE_FILTERS = 8
"""Output channels of the fast pathway's first convolution, per frame."""
_BACKBONE_BATCH = 12
"""Frames per backbone call: its widest feature maps then fit a CPU's cache."""


def slow_frame_indices(num_frames: int) -> list[int]:
    """Indices of the frames of the slow pathway."""
    return uniform_frame_indices(num_frames, NUM_SLOW_FRAMES, repeat=True).tolist()


def fast_pathway_frames(pixels_BTCHW: Tensor) -> Tensor:
    """All frames, downsampled by average pooling to `FAST_PATHWAY_PX`."""
    frames = F.avg_pool2d(pixels_BTCHW.flatten(0, 1), pixels_BTCHW.shape[-1] // FAST_PATHWAY_PX)
    return frames.unflatten(0, pixels_BTCHW.shape[:2])


def slow_pathway_features(
    backbone: Callable[[Tensor], tuple[Tensor, Tensor]], frames_BSCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Fine and coarse backbone features of each cell: (B, S, L, 4 * 112) and (B, S, L, 1280)."""
    parts = [backbone(frames) for frames in frames_BSCHW.flatten(0, 1).split(_BACKBONE_BATCH)]
    fine, coarse = (torch.cat(maps) for maps in zip(*parts, strict=True))
    cells = [F.pixel_unshuffle(fine, 2), coarse]
    return tuple(x.flatten(2).transpose(1, 2).unflatten(0, frames_BSCHW.shape[:2]) for x in cells)  # type: ignore[return-value]


class TwoPathVision(nn.Module):
    """Trained part of the vision side: both pathways' projections, joint layers and pooler."""

    def __init__(
        self,
        *,
        width: int,
        out_width: int,
        num_queries: int,
        num_joint_layers: int,
        slow_feature_width: int | None = None,
    ) -> None:
        """
        Args:
            slow_feature_width: channels per cell, if training reduces them by PCA; None = those of the frozen backbone.
        """
        super().__init__()
        from open_clip.transformer import AttentionalPooler, Transformer

        self.image_size = (FRAME_PX, FRAME_PX)
        # the attributes below name the tensors of the shipped weights
        self.project = nn.Linear(slow_feature_width or FINE_CELL + COARSE_CHANNELS, width)
        self.position_LD = nn.Parameter(0.1 * torch.randn(CELLS * CELLS, width))
        self.time_SD = nn.Parameter(0.1 * torch.randn(NUM_SLOW_FRAMES, width))
        self.motion = FastPathway(width)
        self.motion_position_LD = nn.Parameter(0.1 * torch.randn(_NUM_FAST_TOKENS, width))
        self.ln_cells, self.ln_motion = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint = Transformer(width, num_joint_layers, width // HEAD_WIDTH, mlp_ratio=2.0)
        self.pool = AttentionalPooler(out_width, width, n_head=out_width // HEAD_WIDTH, n_queries=num_queries)
        self.ln_post = nn.LayerNorm(out_width)
        self.proj = nn.Parameter(out_width**-0.5 * torch.randn(out_width, out_width))

    def forward(
        self, slow_features_BSLC: Tensor, fast_frames_BTCHW: Tensor, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contrastive embedding (B, D), pooled tokens (B, N, D), and the mean fast-pathway token (B, D)."""
        cells = (
            self.ln_cells(F.dropout(self.project(slow_features_BSLC), dropout))
            + self.position_LD
            + self.time_SD[:, None]
        )
        motion = self.ln_motion(self.motion(fast_frames_BTCHW))
        x_BLD = torch.cat([cells.flatten(1, 2), motion + self.motion_position_LD], dim=1)
        pooled_BND = self.ln_post(self.pool(self.joint(x_BLD)))
        return pooled_BND[:, 0] @ self.proj, pooled_BND[:, 1:], motion.mean(1)


class FastPathway(nn.Module):
    """Per-frame edge filters, then convolutions with the frames stacked as channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edges = nn.Conv2d(3, NUM_EDGE_FILTERS, 5, stride=2, padding=2)
        widths = (NUM_EDGE_FILTERS * NUM_FRAMES, 96, 128, width)
        self.layers = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
            for in_channels, out_channels in pairwise(widths)
        )
        for layer in (self.edges, *self.layers):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, pixels_BTCHW: Tensor) -> Tensor:
        x = F.gelu(self.edges(pixels_BTCHW.flatten(0, 1))).unflatten(0, pixels_BTCHW.shape[:2]).flatten(1, 2)
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x).flatten(2).transpose(1, 2)


class TwoPathEncoder:
    """A `ClipEncoder` of `TwoPathVision`. It is no module: the frozen backbone, loaded once, is not part of a state dict."""

    repeats_frames = True

    def __init__(self) -> None:
        self._backbone: EfficientNetLite0 | None = None

    def __call__(self, visual: TwoPathVision, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            slow_indices = slow_frame_indices(pixels_BTCHW.shape[1])
            # A list as an index would be copied to the device first.
            slow_frames = torch.stack([pixels_BTCHW[:, int(index)] for index in slow_indices], dim=1)
            slow_features = torch.cat(slow_pathway_features(self._backbone_like(visual.proj), slow_frames), dim=-1)
            fast_frames = fast_pathway_frames(pixels_BTCHW)
        pooled_BD, tokens_BND, _ = visual(slow_features, fast_frames)
        return pooled_BD, tokens_BND

    def _backbone_like(self, weight: Tensor) -> EfficientNetLite0:
        """The frozen backbone on the device and in the type of `weight`."""
        self._backbone = (self._backbone or load_backbone()).to(weight.device, weight.dtype)
        return self._backbone


def build_two_path(coca: Any, vision: Mapping[str, Any], *, slow_feature_width: int | None = None) -> VideoCoCa:
    """Build the model from the `vision` section of a captioner's config; replaces the vision tower of `coca`.

    Args:
        slow_feature_width: channels per cell, if training reduces them by PCA.

    Raises:
        UsageError: unknown frozen backbone.
        WeightsUnreachableError: the package with the frozen weights is not installed; raised here, not at the first clip.
    """
    if vision.get("frozen") != FROZEN_BACKBONE:
        raise UsageError(
            f"this captioner needs the frozen vision backbone {vision.get('frozen')!r}; supported: {FROZEN_BACKBONE}"
        )
    if slow_feature_width is None:
        weights_file()
    coca.visual = TwoPathVision(
        width=vision["width"],
        out_width=coca.text_decoder.width,
        num_queries=vision["queries"],
        num_joint_layers=vision["joint_layers"],
        slow_feature_width=slow_feature_width,
    )
    return VideoCoCa(coca, TwoPathEncoder(), trims_text_padding=True)
