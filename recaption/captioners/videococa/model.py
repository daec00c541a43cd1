"""VideoCoCa (arXiv 2212.04979): an image captioner that sees a clip, in the designs that the paper compares.

    attentional   every frame encoded on its own; the tokens of all frames are one sequence for CoCa's own pooler
    factorized    CoCa's pooler per frame, then a small transformer over time; the decoder reads the tokens of all frames
    joint         the patches of all frames go through the encoder as one sequence, then CoCa's own pooler
    mean          CoCa's pooler per frame, then the mean over time: the order of frames is invisible

With image weights all of them work at once, and a clip of one frame gives the image's own result. What is added starts
without effect: a temporal embedding (without it `attentional` and `joint` do not see the order of frames), the
transformer over time, and, for `attentional`, joint layers in which the tokens of all frames see each other first.

    model = VideoCoCa(open_clip.create_model("coca_ViT-B-32"))
    embedding = model.encode_clips(pixels_BTCHW)     # pooled_BD (unit length), tokens_BND

Where the vision config says `attentional_pool: parallel` or `cascade` (the two poolers of CoCa's paper, which open_clip
3.3 builds but cannot run), one pooler makes the decoder's tokens and another, of one query, the contrastive embedding:
from the encoder's tokens, or from the first pooler's.

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

DESIGNS = ("attentional", "factorized", "joint", "mean")


POOLERS = ("parallel", "cascade")
"""Values of open_clip's `attentional_pool` with a contrastive pooler of its own."""


TEMPORAL_LAYERS = 4
"""Of `factorized`, the paper's number."""


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

    def __init__(
        self,
        coca: nn.Module,
        *,
        design: str = "attentional",
        max_frames: int = 0,
        num_joint_layers: int = 0,
        num_temporal_layers: int = TEMPORAL_LAYERS,
    ) -> None:
        """
        Args:
            coca: an `open_clip.coca_model.CoCa` with open_clip's own vision and text transformers.
            design: one of `DESIGNS`.
            max_frames: above 0, adds a zero-initialised temporal embedding for that many frames.
            num_joint_layers: of `attentional`: layers over the tokens of all frames; they start as the identity.
            num_temporal_layers: of `factorized`; they start as the identity.
        """
        super().__init__()
        from open_clip.transformer import TextTransformer, VisionTransformer

        if not isinstance(coca.visual, VisionTransformer) or not isinstance(coca.text, TextTransformer):
            raise UsageError("VideoCoCa needs a CoCa whose vision and text towers are open_clip transformers")
        _check_design(
            design,
            has_pooler=coca.visual.attn_pool is not None,
            has_time=max_frames > 0,
            num_joint_layers=num_joint_layers,
        )
        self.coca: Any = coca
        self.design = design
        width = coca.visual.class_embedding.shape[0]
        pooled_width = coca.visual.ln_post.normalized_shape[0]
        heads = coca.visual.transformer.resblocks[0].attn.num_heads
        embedded = pooled_width if design == "factorized" else width
        self.temporal_embedding = nn.Parameter(torch.zeros(max_frames, embedded)) if max_frames else None
        self.joint = _silent_layers(width, num_joint_layers, heads) if num_joint_layers else None
        self.temporal: nn.Module | None = None
        if design == "factorized":
            self.temporal = _silent_layers(pooled_width, num_temporal_layers, coca.visual.attn_pool.attn.num_heads)

    def encode_clips(self, pixels_BTCHW: Tensor) -> ClipEmbedding:
        if not pixels_BTCHW.shape[1]:
            raise UsageError("a clip without frames cannot be encoded")
        visual = self.coca.visual
        encode = {"factorized": self._pooled_per_frame, "joint": self._as_one_sequence, "mean": self._pooled_per_frame}
        pooled_BD, tokens_BND = encode.get(self.design, self._frames_then_pooler)(pixels_BTCHW)
        if visual.proj is not None:
            pooled_BD = pooled_BD @ visual.proj
        return ClipEmbedding(pooled_BD=F.normalize(pooled_BD, dim=-1), tokens_BND=tokens_BND)

    def _frames_then_pooler(self, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.coca.visual
        x_BTLD = visual.transformer(visual._embeds(pixels_BTCHW.flatten(0, 1))).unflatten(0, pixels_BTCHW.shape[:2])
        x_BLD = self._with_time(x_BTLD).flatten(1, 2)
        if self.joint is not None:
            x_BLD = self.joint(x_BLD)
        return self._pool(x_BLD)

    def _as_one_sequence(self, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.coca.visual
        x_BTLD = visual._embeds(pixels_BTCHW.flatten(0, 1)).unflatten(0, pixels_BTCHW.shape[:2])
        return self._pool(visual.transformer(self._with_time(x_BTLD).flatten(1, 2)))

    def _pooled_per_frame(self, pixels_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.coca.visual
        num_clips, num_frames = pixels_BTCHW.shape[:2]
        pooled_FD, tokens_FND = self._pool(visual.transformer(visual._embeds(pixels_BTCHW.flatten(0, 1))))
        x_BTND = torch.cat([pooled_FD[:, None], tokens_FND], dim=1).unflatten(0, (num_clips, num_frames))
        if self.temporal is None:
            x_BND = x_BTND.mean(dim=1)
            return x_BND[:, 0], x_BND[:, 1:]
        # each query looks along time at what it saw in the other frames
        x_GTD = self.temporal(self._with_time(x_BTND).transpose(1, 2).flatten(0, 1))
        x_BTND = x_GTD.unflatten(0, (num_clips, x_BTND.shape[2])).transpose(1, 2)
        return x_BTND[:, :, 0].mean(dim=1), x_BTND[:, :, 1:].flatten(1, 2)

    def _with_time(self, x_BTLD: Tensor) -> Tensor:
        if self.temporal_embedding is None:
            return x_BTLD
        num_frames, most = x_BTLD.shape[1], len(self.temporal_embedding)
        if num_frames > most:
            raise UsageError(f"{num_frames} frames, but the temporal embedding knows {most}")
        return x_BTLD + self.temporal_embedding[:num_frames, None].to(x_BTLD.dtype)

    def _pool(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.coca.visual
        if getattr(visual, "attn_pool_contrastive", None) is None:
            pooled_BD, tokens_BND = visual._pool(x_BLD)
            return pooled_BD, tokens_BND
        tokens_BND = visual.ln_post(visual.attn_pool(x_BLD))
        read = tokens_BND if visual.attn_pool_type == "cascade" else x_BLD
        return visual.ln_post(visual.attn_pool_contrastive(read))[:, 0], tokens_BND

    def encode_texts(self, tokens_SM: Tensor) -> TextEmbedding:
        """Both outputs of the unimodal text tower for padded token ids."""
        pooled_SD, tokens_SMD = self.coca.text(tokens_SM)
        return TextEmbedding(pooled_SD=pooled_SD, tokens_SMD=tokens_SMD)

    @property
    def has_cls_of_its_own(self) -> bool:
        """Whether a text's embedding is that of a CLS token behind it, in open_clip's own layout."""
        return self.coca.text.cls_emb is not None and not isinstance(self.coca.text.text_projection, nn.Module)

    def pool_texts(self, tokens_SM: Tensor) -> Tensor:
        """`encode_texts(...).pooled_SD`, without computing the padding behind the longest text."""
        text = self.coca.text
        if not self.has_cls_of_its_own:
            return self.encode_texts(tokens_SM).pooled_SD
        num_tokens = tokens_SM.shape[1]
        said = (tokens_SM != text.pad_id).any(dim=0).nonzero()
        # one more than the longest text: published weights take the position after a text for a part of it
        longest = min(num_tokens, int(said.max()) + 2 if len(said) else 1)
        x_SMD, mask = text._embeds(tokens_SM)
        chosen = torch.tensor([*range(longest), num_tokens], device=tokens_SM.device)
        x_SMD = text.transformer(x_SMD[:, chosen], attn_mask=mask[:, chosen][:, :, chosen])
        pooled_SD = text.ln_final(x_SMD[:, -1])
        return pooled_SD if text.text_projection is None else pooled_SD @ text.text_projection

    def caption_logits(self, image_tokens_BND: Tensor, text_tokens_BMD: Tensor) -> Tensor:
        """Logits (B, M, V) of the token after each text position."""
        return self.coca.text_decoder(image_tokens_BND, text_tokens_BMD)


def _check_design(design: str, *, has_pooler: bool, has_time: bool, num_joint_layers: int) -> None:
    if design not in DESIGNS:
        raise UsageError(f"{design = } is not one of {', '.join(DESIGNS)}")
    if design == "mean" and has_time:
        raise UsageError("a mean over time cannot show the order of frames: leave out the temporal embedding")
    if design != "attentional" and num_joint_layers:
        raise UsageError(f"joint layers belong to the attentional design, not to {design}")
    if design == "factorized" and not has_pooler:
        raise UsageError("the factorized design needs a CoCa with an attentional pooler")


def _silent_layers(width: int, num_layers: int, num_heads: int) -> nn.Module:
    """A transformer that starts as the identity."""
    from open_clip.transformer import Transformer

    layers = Transformer(width, num_layers, num_heads)
    for block in layers.resblocks:
        for layer in (block.attn.out_proj, block.mlp.c_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers


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
    _mend_cascade(coca.visual)
    if stem_channels:
        coca.visual.conv1 = _stem(stem_channels, coca.visual.conv1)
    initialise_decoder(coca)
    return coca


def _mend_cascade(visual: Any) -> None:
    """open_clip gives a cascade's contrastive pooler the encoder's width, but it reads the other pooler's tokens."""
    from open_clip.transformer import AttentionalPooler

    if getattr(visual, "attn_pool_type", "") == "cascade":
        width, heads = visual.ln_post.normalized_shape[0], visual.attn_pool.attn.num_heads
        visual.attn_pool_contrastive = AttentionalPooler(width, width, n_head=heads, n_queries=1)


def two_poolers(config: Mapping[str, Any], pooler: str) -> dict[str, Any]:
    """An open_clip model config with its one pooler split in two; `grown_state` takes the one's weights for both."""
    vision = {**config["vision_cfg"], "attentional_pool": pooler}
    vision["attn_pooler_queries"] = vision.get("attn_pooler_queries", 256) - 1  # the contrastive one stands alone
    return {**config, "vision_cfg": vision}


def grown_state(state: Mapping[str, Tensor], model: VideoCoCa) -> dict[str, Tensor]:
    """Weights for `model` from those of a smaller design: what they lack keeps the model's own first values.

    A single pooler's weights become both poolers'. With `parallel` and one query less, the result is that of the single
    pooler; the contrastive pooler of a cascade reads other tokens, so its keys and values start anew.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    prefix = "coca.visual.attn_pool_contrastive."
    grown = dict(state)
    if prefix + "query" in own and prefix + "query" not in state:
        shared = {name: tensor for name, tensor in state.items() if name.startswith("coca.visual.attn_pool.")}
        query_ND = shared["coca.visual.attn_pool.query"]
        for name, tensor in shared.items():
            other = name.replace("attn_pool.", "attn_pool_contrastive.")
            if other in own and own[other].shape == tensor.shape:
                grown[other] = tensor
        grown[prefix + "query"] = query_ND[:1]
        grown["coca.visual.attn_pool.query"] = query_ND[-len(own["coca.visual.attn_pool.query"]) :]
    new = ("temporal_embedding", "temporal.", "joint.", prefix)
    return {**{name: tensor for name, tensor in own.items() if name.startswith(new)}, **grown}


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
