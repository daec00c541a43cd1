"""VideoCoCa (arXiv 2212.04979): an image CoCa applied to video clips, in the designs that the paper compares.

    attentional   each frame encoded separately; the tokens of all frames are one sequence for CoCa's attentional pooler
    factorized    CoCa's pooler per frame, then a small temporal transformer; the decoder reads the tokens of all frames
    joint         the patches of all frames go through the encoder as one sequence, then CoCa's pooler
    mean          CoCa's pooler per frame, then the mean over time: frame order is ignored

All designs work with image weights without training, and a one-frame clip gives exactly the image model's result. Added
parts are initialised to have no effect: a temporal embedding (without it `attentional` and `joint` ignore frame order),
the temporal transformer, and, for `attentional`, joint layers in which the tokens of all frames attend to each other.

    coca = open_clip.create_model("coca_ViT-B-32")
    model = VideoCoCa(coca, FrameEncoder(coca.visual, design="attentional"))
    embedding = model.encode_clips(pixels_BTCHW)     # pooled_BD (unit length), tokens_BND

With `attentional_pool: parallel` or `cascade` in the vision config (the two poolers of the CoCa paper, which open_clip
3.3 builds but cannot run), one pooler outputs the decoder's tokens and another, with one query, the contrastive embedding:
from the encoder's tokens (parallel) or from the first pooler's output (cascade).

Shapes: B clips, T frames, S texts, L frame tokens, N pooled image tokens, M text positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.errors import UsageError

DESIGNS = ("attentional", "factorized", "joint", "mean")
POOLERS = ("parallel", "cascade")
"""Values of open_clip's `attentional_pool` that have a separate contrastive pooler."""
TEMPORAL_LAYERS = 4
"""Layers of the temporal transformer of `factorized`, as in the paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipEmbedding:
    """Output of the vision side for B clips."""

    pooled_BD: Tensor
    """Contrastive embedding, unit length."""
    tokens_BND: Tensor
    """Pooled image tokens: the caption decoder's cross-attention input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEmbedding:
    """Output of the unimodal text tower for S texts."""

    pooled_SD: Tensor
    """Contrastive embedding (projected CLS token), not normalised."""
    tokens_SMD: Tensor
    """Last layer of the tower, before its final norm: the caption decoder's input."""


class ClipEncoder(Protocol):
    """Encodes clips with a CoCa's vision tower."""

    repeats_frames: bool
    """Whether clips with too few frames repeat some of them; otherwise they are encoded with those they have."""

    def __call__(self, visual: Any, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """pooled_BD (the contrastive embedding, not normalised) and tokens_BND.

        Args:
            visual: the vision tower; an argument, so that its weights belong to the CoCa alone.
        """
        ...


class VideoCoCa(nn.Module):
    """A CoCa whose vision tower encodes clips by a `ClipEncoder`, with open_clip's text tower and caption decoder."""

    def __init__(
        self, coca: nn.Module, clip_encoder: ClipEncoder | None = None, *, trims_text_padding: bool = False
    ) -> None:
        """
        Args:
            coca: an `open_clip.coca_model.CoCa` with open_clip's own text transformer.
            clip_encoder: None = `FrameEncoder` in its default design.
            trims_text_padding: `encode_texts` leaves out positions that are padding in every text; equal to rounding, but
                shapes then depend on the texts. Needs a text tower with `correct_cls_mask`.
        """
        super().__init__()
        from open_clip.transformer import TextTransformer

        if not isinstance(coca.text, TextTransformer):
            raise UsageError("VideoCoCa needs a CoCa whose text tower is an open_clip transformer")
        self.coca: Any = coca
        self.clip_encoder: ClipEncoder = FrameEncoder(coca.visual) if clip_encoder is None else clip_encoder
        self.trims_text_padding = trims_text_padding

    def encode_clips(self, pixels_BTCHW: Tensor) -> ClipEmbedding:
        if not pixels_BTCHW.shape[1]:
            raise UsageError("a clip without frames cannot be encoded")
        pooled_BD, tokens_BND = self.clip_encoder(self.coca.visual, pixels_BTCHW)
        # in float32: a unit vector rounded to bf16 is 0.2 % too long or short, and so would be its clip scores
        return ClipEmbedding(pooled_BD=F.normalize(pooled_BD.float(), dim=-1), tokens_BND=tokens_BND)

    def encode_texts(self, tokens_SM: Tensor, *, longest: int | None = None) -> TextEmbedding:
        """Token features and CLS embedding of the unimodal text tower, for padded token ids.

        Args:
            longest: tokens of the longest text, if the caller knows it; read from the ids otherwise, a host sync on a GPU.
        """
        if self.trims_text_padding:
            return self._encode_trimmed_texts(tokens_SM, longest)
        pooled_SD, tokens_SMD = self.coca.text(tokens_SM)
        return TextEmbedding(pooled_SD=pooled_SD, tokens_SMD=tokens_SMD)

    def _encode_trimmed_texts(self, tokens_SM: Tensor, longest: int | None) -> TextEmbedding:
        """The CLS token keeps its position after a full context, so the result equals that of the full tower."""
        text = self.coca.text
        longest = longest or max(1, int((tokens_SM != text.pad_id).sum(dim=1).max()))
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

    @property
    def has_appended_cls_token(self) -> bool:
        """Whether a text's embedding comes from a CLS token appended to it, in open_clip's own layout."""
        return self.coca.text.cls_emb is not None and not isinstance(self.coca.text.text_projection, nn.Module)

    def pool_texts(self, tokens_SM: Tensor) -> Tensor:
        """`encode_texts(...).pooled_SD`, skipping the padding after the longest text."""
        text = self.coca.text
        if not self.has_appended_cls_token:
            return self.encode_texts(tokens_SM).pooled_SD
        num_tokens = tokens_SM.shape[1]
        is_used = (tokens_SM != text.pad_id).any(dim=0).nonzero()
        # one more than the longest text: with published weights CLS also attends to the position after a text
        longest = min(num_tokens, int(is_used.max()) + 2 if len(is_used) else 1)
        x_SMD, mask = text._embeds(tokens_SM)
        positions = torch.tensor([*range(longest), num_tokens], device=tokens_SM.device)
        x_SMD = text.transformer(x_SMD[:, positions], attn_mask=mask[:, positions][:, :, positions])
        pooled_SD = text.ln_final(x_SMD[:, -1])
        return pooled_SD if text.text_projection is None else pooled_SD @ text.text_projection

    def caption_logits(self, image_tokens_BND: Tensor, text_tokens_BMD: Tensor) -> Tensor:
        """Logits (B, M, V) of the token after each text position."""
        return self.coca.text_decoder(image_tokens_BND, text_tokens_BMD)


class FrameEncoder(nn.Module):
    """A `ClipEncoder` of open_clip's image tower, in one of `DESIGNS`; holds what a design adds to the tower."""

    def __init__(
        self,
        visual: Any,
        *,
        design: str = "attentional",
        max_frames: int = 0,
        num_joint_layers: int = 0,
        num_temporal_layers: int = TEMPORAL_LAYERS,
    ) -> None:
        """
        Args:
            visual: open_clip's vision transformer.
            design: one of `DESIGNS`.
            max_frames: above 0, adds a zero-initialised temporal embedding for that many frames.
            num_joint_layers: `attentional` only: layers over the tokens of all frames, initialised to the identity.
            num_temporal_layers: `factorized` only; initialised to the identity.
        """
        super().__init__()
        from open_clip.transformer import VisionTransformer

        if not isinstance(visual, VisionTransformer):
            raise UsageError("VideoCoCa needs a CoCa whose vision tower is an open_clip transformer")
        _check_design(
            design, has_pooler=visual.attn_pool is not None, has_time=max_frames > 0, num_joint_layers=num_joint_layers
        )
        self.design = design
        width = visual.class_embedding.shape[0]
        pooled_width = visual.ln_post.normalized_shape[0]
        heads = visual.transformer.resblocks[0].attn.num_heads
        embedding_width = pooled_width if design == "factorized" else width
        self.temporal_embedding = nn.Parameter(torch.zeros(max_frames, embedding_width)) if max_frames else None
        self.joint = _zero_init_layers(width, num_joint_layers, heads) if num_joint_layers else None
        self.temporal: nn.Module | None = None
        if design == "factorized":
            self.temporal = _zero_init_layers(pooled_width, num_temporal_layers, visual.attn_pool.attn.num_heads)

    @property
    def repeats_frames(self) -> bool:
        return self.temporal_embedding is not None

    def forward(self, visual: Any, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        encode = {"factorized": self._encode_per_frame, "joint": self._encode_joint, "mean": self._encode_per_frame}
        pooled_BD, tokens_BND = encode.get(self.design, self._encode_attentional)(visual, pixels_BTCHW)
        return pooled_BD if visual.proj is None else pooled_BD @ visual.proj, tokens_BND

    def _encode_attentional(self, visual: Any, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BTLD = visual.transformer(visual._embeds(pixels_BTCHW.flatten(0, 1))).unflatten(0, pixels_BTCHW.shape[:2])
        x_BLD = self._add_temporal_embedding(x_BTLD).flatten(1, 2)
        if self.joint is not None:
            x_BLD = self.joint(x_BLD)
        return _pool(visual, x_BLD)

    def _encode_joint(self, visual: Any, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BTLD = visual._embeds(pixels_BTCHW.flatten(0, 1)).unflatten(0, pixels_BTCHW.shape[:2])
        return _pool(visual, visual.transformer(self._add_temporal_embedding(x_BTLD).flatten(1, 2)))

    def _encode_per_frame(self, visual: Any, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        num_clips, num_frames = pixels_BTCHW.shape[:2]
        pooled_FD, tokens_FND = _pool(visual, visual.transformer(visual._embeds(pixels_BTCHW.flatten(0, 1))))
        x_BTND = torch.cat([pooled_FD[:, None], tokens_FND], dim=1).unflatten(0, (num_clips, num_frames))
        if self.temporal is None:
            x_BND = x_BTND.mean(dim=1)
            return x_BND[:, 0], x_BND[:, 1:]
        # each query attends over time to its own outputs of the other frames
        x_GTD = self.temporal(self._add_temporal_embedding(x_BTND).transpose(1, 2).flatten(0, 1))
        x_BTND = x_GTD.unflatten(0, (num_clips, x_BTND.shape[2])).transpose(1, 2)
        return x_BTND[:, :, 0].mean(dim=1), x_BTND[:, :, 1:].flatten(1, 2)

    def _add_temporal_embedding(self, x_BTLD: Tensor) -> Tensor:
        if self.temporal_embedding is None:
            return x_BTLD
        num_frames, max_frames = x_BTLD.shape[1], len(self.temporal_embedding)
        if num_frames > max_frames:
            raise UsageError(f"{num_frames} frames, but the temporal embedding has {max_frames}")
        return x_BTLD + self.temporal_embedding[:num_frames, None].to(x_BTLD.dtype)


def _pool(visual: Any, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
    if getattr(visual, "attn_pool_contrastive", None) is None:
        pooled_BD, tokens_BND = visual._pool(x_BLD)
        return pooled_BD, tokens_BND
    tokens_BND = visual.ln_post(visual.attn_pool(x_BLD))
    pooler_input = tokens_BND if visual.attn_pool_type == "cascade" else x_BLD
    return visual.ln_post(visual.attn_pool_contrastive(pooler_input))[:, 0], tokens_BND


def _check_design(design: str, *, has_pooler: bool, has_time: bool, num_joint_layers: int) -> None:
    if design not in DESIGNS:
        raise UsageError(f"{design = } is not one of {', '.join(DESIGNS)}")
    if design == "mean" and has_time:
        raise UsageError("the mean over time ignores the order of frames: leave out the temporal embedding")
    if design != "attentional" and num_joint_layers:
        raise UsageError(f"joint layers are only for the attentional design, not for {design}")
    if design == "factorized" and not has_pooler:
        raise UsageError("the factorized design needs a CoCa with an attentional pooler")


def _zero_init_layers(width: int, num_layers: int, num_heads: int) -> nn.Module:
    """A transformer initialised to the identity: output projections of attention and MLP are zero."""
    from open_clip.transformer import Transformer

    layers = Transformer(width, num_layers, num_heads)
    for block in layers.resblocks:
        for layer in (block.attn.out_proj, block.mlp.c_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers


def build_coca(config: Mapping[str, Any], *, stem_channels: Sequence[int] = ()) -> nn.Module:
    """A CoCa from open_clip's model config (`embed_dim`, `vision_cfg`, `text_cfg`, `multimodal_cfg`), initialised.

    Unlike the published weights, models built here mask exactly the padding for the CLS token (`correct_cls_mask`).

    Args:
        stem_channels: replaces the patch convolution by a convolutional stem: stride-2 3x3 convolutions, of these widths
            before the last one; small models learn shapes much sooner with it (arXiv 2106.14881).
    """
    from open_clip.coca_model import CoCa

    coca = CoCa(**{key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()})
    coca.text.correct_cls_mask = True
    _fix_cascade_pooler_width(coca.visual)
    if stem_channels:
        coca.visual.conv1 = _conv_stem(stem_channels, coca.visual.conv1)
    init_decoder_weights(coca)
    return coca


def _fix_cascade_pooler_width(visual: Any) -> None:
    """Rebuild a cascade's contrastive pooler with the width of the first pooler's output; open_clip uses the encoder's."""
    from open_clip.transformer import AttentionalPooler

    if getattr(visual, "attn_pool_type", "") == "cascade":
        width, heads = visual.ln_post.normalized_shape[0], visual.attn_pool.attn.num_heads
        visual.attn_pool_contrastive = AttentionalPooler(width, width, n_head=heads, n_queries=1)


def split_pooler(config: Mapping[str, Any], pooler: str) -> dict[str, Any]:
    """An open_clip model config with its single pooler split in two; `expand_state_dict` splits the weights."""
    vision = {**config["vision_cfg"], "attentional_pool": pooler}
    # the contrastive query moves to the other pooler
    vision["attn_pooler_queries"] = vision.get("attn_pooler_queries", 256) - 1
    return {**config, "vision_cfg": vision}


def expand_state_dict(state: Mapping[str, Tensor], model: VideoCoCa) -> dict[str, Tensor]:
    """State dict for `model` from that of a smaller design; added parts keep the model's own initial values.

    A single pooler's weights initialise both poolers. With `parallel` and one query less, the output equals the single
    pooler's; a cascade's contrastive pooler has another input, so its keys and values are newly initialised.
    """
    initial = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    prefix = "coca.visual.attn_pool_contrastive."
    expanded = dict(state)
    if prefix + "query" in initial and prefix + "query" not in state:
        shared = {name: tensor for name, tensor in state.items() if name.startswith("coca.visual.attn_pool.")}
        query_ND = shared["coca.visual.attn_pool.query"]
        for name, tensor in shared.items():
            other = name.replace("attn_pool.", "attn_pool_contrastive.")
            if other in initial and initial[other].shape == tensor.shape:
                expanded[other] = tensor
        expanded[prefix + "query"] = query_ND[:1]
        expanded["coca.visual.attn_pool.query"] = query_ND[-len(initial["coca.visual.attn_pool.query"]) :]
    new = ("clip_encoder.", prefix)
    return {**{name: tensor for name, tensor in initial.items() if name.startswith(new)}, **expanded}


def _conv_stem(channels: Sequence[int], patches: nn.Conv2d) -> nn.Sequential:
    """Convolutional stem with the output shape of the patch convolution that it replaces."""
    if patches.stride[0] != 2 ** (len(channels) + 1):
        raise UsageError(f"{len(channels) + 1} halvings do not give patches of {patches.stride[0]} px")
    layers: list[nn.Module] = []
    before = patches.in_channels
    for after in (*channels, patches.out_channels):
        convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
        nn.init.kaiming_normal_(convolution.weight)
        layers += [convolution, nn.GELU()]
        before = after
    return nn.Sequential(*layers[:-1])


def init_decoder_weights(coca: Any) -> None:
    """Initialise the caption decoder as intended.

    open_clip leaves `text_decoder.text_projection` as `torch.empty` (its own init method is never called and would
    fail), so without loaded weights the logits come from uninitialised memory. The scales are those of open_clip's text
    tower: width**-0.5, residual outputs divided by sqrt(2 * layers).
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
