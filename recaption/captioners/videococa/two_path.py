"""VideoCoCa with two paths: a frozen network looks closely at a few frames, a small trained one at all of them.

What things are is seen in a few frames, how they move only in many: three of the eight frames go through the frozen
EfficientNet at full size, all eight, at a third of it, through a few convolutions whose channels are the frames, so that
every filter sees the whole clip. The tokens of both paths meet in joint layers and in CoCa's own attentional pooler. The
frozen weights are not part of the captioner's own state (`frozen_tower`): they lie in a package of their own.

    model = TwoPathCoCa(coca, width=160, num_joint_layers=1)
    embedding = model.encode_clips(pixels_BTCHW)

Shapes: B clips, T frames, S frames seen closely, L cells per frame, C channels, D width, N pooled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.captioners.preprocess import choose_frames
from recaption.captioners.videococa.efficientnet import (
    COARSE_CHANNELS,
    FINE_CHANNELS,
    STRIDE_PX,
    EfficientNetLite0,
    load_tower,
    weights_file,
)
from recaption.captioners.videococa.model import ClipEmbedding, TextEmbedding, VideoCoCa
from recaption.errors import UsageError

FROZEN = "efficientnet-lite0"


FRAME_PX = 192


NUM_FRAMES = 8


NUM_CLOSE_FRAMES = 3


MOTION_PX = 64
"""Side of the frames that the motion path sees."""


CELLS = FRAME_PX // STRIDE_PX


FINE_CELL = 4 * FINE_CHANNELS
"""The fine map's 2 x 2 cells that lie in one cell of the coarse map, one after another."""


_MOTION_TOKENS = 16


_CHUNK = 12
"""Frames that go through the frozen network at once: its widest maps then stay in a CPU's cache."""


def close_frames(num_frames: int) -> list[int]:
    return choose_frames(num_frames, NUM_CLOSE_FRAMES, repeat=True).tolist()


def motion_pixels(pixels_BTCHW: Tensor) -> Tensor:
    """All frames, each pixel the mean of a square."""
    frames = F.avg_pool2d(pixels_BTCHW.flatten(0, 1), pixels_BTCHW.shape[-1] // MOTION_PX)
    return frames.unflatten(0, pixels_BTCHW.shape[:2])


def coarse_fine(tower: Callable[[Tensor], tuple[Tensor, Tensor]], close_BSCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Cells of the close frames, (B, S, L, 4 * 112) and (B, S, L, 1280)."""
    parts = [tower(frames) for frames in close_BSCHW.flatten(0, 1).split(_CHUNK)]
    fine, coarse = (torch.cat(maps) for maps in zip(*parts, strict=True))
    cells = [F.pixel_unshuffle(fine, 2), coarse]
    return tuple(x.flatten(2).transpose(1, 2).unflatten(0, close_BSCHW.shape[:2]) for x in cells)  # type: ignore[return-value]


class TwoPathVision(nn.Module):
    """Everything of the vision side that is trained."""

    def __init__(
        self, *, width: int, out_width: int, num_queries: int, num_joint_layers: int, semantic_width: int | None = None
    ) -> None:
        """
        Args:
            semantic_width: of the cells, where they come reduced (training); the frozen network's own otherwise.
        """
        super().__init__()
        from open_clip.transformer import AttentionalPooler, Transformer

        self.image_size = (FRAME_PX, FRAME_PX)
        self.project = nn.Linear(semantic_width or FINE_CELL + COARSE_CHANNELS, width)
        self.position_LD = nn.Parameter(0.1 * torch.randn(CELLS * CELLS, width))
        self.time_SD = nn.Parameter(0.1 * torch.randn(NUM_CLOSE_FRAMES, width))
        self.motion = MotionPath(width)
        self.motion_position_LD = nn.Parameter(0.1 * torch.randn(_MOTION_TOKENS, width))
        self.ln_cells, self.ln_motion = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint = Transformer(width, num_joint_layers, width // HEAD_WIDTH, mlp_ratio=2.0)
        self.pool = AttentionalPooler(out_width, width, n_head=out_width // HEAD_WIDTH, n_queries=num_queries)
        self.ln_post = nn.LayerNorm(out_width)
        self.proj = nn.Parameter(out_width**-0.5 * torch.randn(out_width, out_width))

    def forward(
        self, semantic_BSLC: Tensor, motion_BTCHW: Tensor, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contrastive embedding (B, D), pooled tokens (B, N, D), and the mean motion token (B, D)."""
        cells = (
            self.ln_cells(F.dropout(self.project(semantic_BSLC), dropout)) + self.position_LD + self.time_SD[:, None]
        )
        motion = self.ln_motion(self.motion(motion_BTCHW))
        x_BLD = torch.cat([cells.flatten(1, 2), motion + self.motion_position_LD], dim=1)
        pooled_BND = self.ln_post(self.pool(self.joint(x_BLD)))
        return pooled_BND[:, 0] @ self.proj, pooled_BND[:, 1:], motion.mean(1)


class MotionPath(nn.Module):
    """Edges of every frame by the same filters, then convolutions over the frames as channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edges = nn.Conv2d(3, EDGES, 5, stride=2, padding=2)
        widths = (EDGES * NUM_FRAMES, 96, 128, width)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        for layer in (self.edges, *self.layers):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, pixels_BTCHW: Tensor) -> Tensor:
        x = F.gelu(self.edges(pixels_BTCHW.flatten(0, 1))).unflatten(0, pixels_BTCHW.shape[:2]).flatten(1, 2)
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x).flatten(2).transpose(1, 2)


HEAD_WIDTH = 32


EDGES = 8


class TwoPathCoCa(VideoCoCa):
    """CoCa's text tower and caption decoder behind `TwoPathVision`."""

    def __init__(
        self,
        coca: nn.Module,
        *,
        width: int,
        num_queries: int,
        num_joint_layers: int,
        semantic_width: int | None = None,
    ) -> None:
        """
        Args:
            coca: an `open_clip.coca_model.CoCa`; its vision tower is replaced.
            semantic_width: of the cells, where training gives them reduced.
        """
        nn.Module.__init__(self)
        self.coca: Any = coca
        coca.visual = TwoPathVision(
            width=width,
            out_width=coca.text_decoder.width,
            num_queries=num_queries,
            num_joint_layers=num_joint_layers,
            semantic_width=semantic_width,
        )
        self.design = "two paths"
        self.joint = None
        self._frozen: list[EfficientNetLite0] = []

    @property
    def temporal_embedding(self) -> nn.Parameter:  # type: ignore[override]
        """Where in the clip a close frame stands: clips shorter than wanted show frames twice."""
        return self.coca.visual.time_SD

    def frozen_tower(self) -> EfficientNetLite0:
        """The frozen network on this model's device and in its type; opened once, and no part of `state_dict`."""
        like = self.coca.logit_scale
        if not self._frozen:
            self._frozen.append(load_tower())
        tower = self._frozen[0]
        weight = tower.stem.weight
        if (weight.device, weight.dtype) != (like.device, like.dtype):
            self._frozen[0] = tower = tower.to(like.device, like.dtype)
        return tower

    def encode_clips(self, pixels_BTCHW: Tensor) -> ClipEmbedding:
        with torch.no_grad():
            close = pixels_BTCHW[:, close_frames(pixels_BTCHW.shape[1])]
            semantic = torch.cat(coarse_fine(self.frozen_tower(), close), dim=-1)
            small = motion_pixels(pixels_BTCHW)
        pooled_BD, tokens_BND, _ = self.coca.visual(semantic, small)
        return ClipEmbedding(pooled_BD=F.normalize(pooled_BD, dim=-1), tokens_BND=tokens_BND)

    def encode_texts(self, tokens_SM: Tensor) -> TextEmbedding:
        """As CoCa's own text tower, without the columns that are padding in every text.

        The CLS token keeps the position it has behind a full context: the result is that of the whole tower.
        """
        text = self.coca.text
        longest = max(1, int((tokens_SM != text.pad_id).sum(dim=1).max()))
        ids_SL = tokens_SM[:, :longest]
        x_SLD = text.token_embedding(ids_SL) + text.positional_embedding[:longest]
        cls_D = text.cls_emb + text.positional_embedding[-1]
        x_SLD = torch.cat([x_SLD, cls_D.expand(len(x_SLD), 1, -1)], dim=1)
        mask = text.attn_mask[: longest + 1, : longest + 1] + text._build_additive_mask(
            ids_SL, longest + 1, x_SLD.dtype
        )
        x_SLD = text.transformer(x_SLD, attn_mask=mask)
        pooled_SD = text.ln_final(x_SLD[:, -1]) @ text.text_projection
        return TextEmbedding(pooled_SD=pooled_SD, tokens_SMD=x_SLD[:, :-1])


def build_two_path(coca: nn.Module, vision: Mapping[str, Any], *, semantic_width: int | None = None) -> TwoPathCoCa:
    """From the `vision` part of a captioner's config.

    Raises:
        UsageError: it asks for another frozen network.
        WeightsUnreachableError: the package with the frozen weights is not installed; said here, not at the first clip.
    """
    if vision.get("frozen") != FROZEN:
        raise UsageError(f"this captioner needs the frozen vision network {vision.get('frozen')!r}; known: {FROZEN}")
    if semantic_width is None:
        weights_file()
    return TwoPathCoCa(
        coca,
        width=vision["width"],
        num_queries=vision["queries"],
        num_joint_layers=vision["joint_layers"],
        semantic_width=semantic_width,
    )
