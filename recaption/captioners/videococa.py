"""VideoCoCa (arXiv 2212.04979): an image captioner that sees a clip, through the attentional pooler it already has.

Every frame is encoded on its own; the tokens of all frames form one long sequence that CoCa's own pooler reads. No
parameter is added, so weights trained on images work at once, and a clip of one frame gives the image's own result.
Two additions are open to models that are trained further or from nothing, both without effect at first: a temporal
embedding of the frame tokens (without it the order of frames is invisible) and joint layers, in which the tokens of all
frames see each other before they are pooled.

    model = VideoCoCa(open_clip.create_model("coca_ViT-B-32"))
    embedding = model.encode_clips(pixels_BTCHW)     # pooled_BD (unit length), tokens_BND

Shapes: B clips, T frames, S texts, L frame tokens, N pooled image tokens, M text positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipEmbedding:
    pooled_BD: Tensor
    """Contrastive embedding, unit length."""
    tokens_BND: Tensor
    """What the caption decoder attends to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEmbedding:
    pooled_SD: Tensor
    """Contrastive embedding (projected CLS token), not normalised."""
    tokens_SMD: Tensor
    """Last layer of the unimodal tower, before its final norm: what the caption decoder continues from."""


class VideoCoCa(nn.Module):
    """open_clip's CoCa over clips."""

    def __init__(self, coca: nn.Module, *, max_frames: int = 0, num_joint_layers: int = 0) -> None:
        """
        Args:
            coca: an `open_clip.coca_model.CoCa` with open_clip's own vision and text transformers.
            max_frames: above 0, adds a zero-initialised temporal embedding for that many frames.
            num_joint_layers: transformer layers over the tokens of all frames; they start as the identity.
        """
        super().__init__()
        from open_clip.transformer import TextTransformer, Transformer, VisionTransformer

        if not isinstance(coca.visual, VisionTransformer) or not isinstance(coca.text, TextTransformer):
            raise UsageError("VideoCoCa needs a CoCa whose vision and text towers are open_clip transformers")
        self.coca: Any = coca
        width = coca.visual.class_embedding.shape[0]
        self.temporal_embedding = nn.Parameter(torch.zeros(max_frames, width)) if max_frames else None
        self.joint: nn.Module | None = None
        if num_joint_layers:
            heads = coca.visual.transformer.resblocks[0].attn.num_heads
            self.joint = Transformer(width, num_joint_layers, heads)
            for block in self.joint.resblocks:
                for layer in (block.attn.out_proj, block.mlp.c_proj):
                    nn.init.zeros_(layer.weight)
                    nn.init.zeros_(layer.bias)

    def encode_clips(self, pixels_BTCHW: Tensor) -> ClipEmbedding:
        visual = self.coca.visual
        num_clips, num_frames = pixels_BTCHW.shape[:2]
        x_BTLD = visual.transformer(visual._embeds(pixels_BTCHW.flatten(0, 1))).unflatten(0, (num_clips, num_frames))
        if self.temporal_embedding is not None:
            x_BTLD = x_BTLD + self.temporal_embedding[:num_frames, None].to(x_BTLD.dtype)
        x_BLD = x_BTLD.flatten(1, 2)
        if self.joint is not None:
            x_BLD = self.joint(x_BLD)
        pooled_BD, tokens_BND = visual._pool(x_BLD)
        if visual.proj is not None:
            pooled_BD = pooled_BD @ visual.proj
        return ClipEmbedding(pooled_BD=F.normalize(pooled_BD, dim=-1), tokens_BND=tokens_BND)

    def encode_texts(self, tokens_SM: Tensor) -> TextEmbedding:
        """Both outputs of the unimodal text tower for padded token ids."""
        pooled_SD, tokens_SMD = self.coca.text(tokens_SM)
        return TextEmbedding(pooled_SD=pooled_SD, tokens_SMD=tokens_SMD)

    def caption_logits(self, image_tokens_BND: Tensor, text_tokens_BMD: Tensor) -> Tensor:
        """Logits (B, M, V) of the token after each text position."""
        return self.coca.text_decoder(image_tokens_BND, text_tokens_BMD)


def build_coca(config: Mapping[str, Any], *, stem_channels: Sequence[int] = ()) -> nn.Module:
    """A CoCa from open_clip's model config (`embed_dim`, `vision_cfg`, `text_cfg`, `multimodal_cfg`), initialised.

    Unlike the published weights, models built here mask padding for the CLS token at the right places
    (`correct_cls_mask`).

    Args:
        stem_channels: replaces the one convolution that cuts patches by a stack of 3x3 convolutions of stride 2 with
            these widths before the last one; small models learn shapes much sooner with it (arXiv 2106.14881).
    """
    from open_clip.coca_model import CoCa

    coca = CoCa(**{key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()})
    coca.text.correct_cls_mask = True
    if stem_channels:
        coca.visual.conv1 = _stem(stem_channels, coca.visual.conv1)
    initialise_decoder(coca)
    return coca


def _stem(channels: Sequence[int], patches: nn.Conv2d) -> nn.Sequential:
    """Convolutions with as many outputs, of the same width, as the patch convolution that they replace."""
    if patches.stride[0] != 2 ** (len(channels) + 1):
        raise UsageError(f"{len(channels) + 1} halvings do not make patches of {patches.stride[0]} px")
    layers: list[nn.Module] = []
    before = patches.in_channels
    for after in (*channels, patches.out_channels):
        convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
        nn.init.kaiming_normal_(convolution.weight)
        layers += [convolution, nn.GELU()]
        before = after
    return nn.Sequential(*layers[:-1])


def initialise_decoder(coca: Any) -> None:
    """Give the caption decoder its intended first values.

    open_clip leaves `text_decoder.text_projection` as `torch.empty` (its own init method is never called and would
    fail), so without loaded weights the logits are whatever lay in memory. The scales are those of open_clip's text
    tower: width**-0.5, residual outputs smaller by the square root of twice the number of layers.
    """
    decoder = coca.text_decoder
    width = decoder.width
    residual_std = width**-0.5 * (2 * decoder.layers) ** -0.5
    for block in (*decoder.resblocks, *decoder.cross_attn):
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
    if decoder.text_projection is not None:
        nn.init.normal_(decoder.text_projection, std=width**-0.5)
