"""mPLUG-2 (arXiv 2302.00402): its modules for video captioning. Experimental: never run with published weights.

    frames -> vision transformer with two temporal convolutions per block (local temporal modules)
           -> universal layers: learned queries attend to the frames, then the frames to the queries; added to the frames
           -> text decoder with cross-attention to the frames in each layer (fusion)

The decoder continues a prompt ("a video of"), which is excluded from the loss. Modules are named as in the published
source, so that `convert_state_dict` only has to select tensors of a published caption checkpoint. Left out are the text
encoder below the universal layers and the separate fusion encoder, which captioning does not use.

Shapes: B clips, T frames, N patches of a frame, L = 1 + T*N frame tokens, Q queries, M text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption import hub
from recaption.captioners.backends.checkpoint_folder import Tokenizer, TrainingBatch, write_checkpoint_folder
from recaption.errors import CheckpointMismatchError

FORMAT = "mplug2-1"
LARGE_CONFIG: dict[str, Any] = {
    "format": FORMAT,
    "num_frames": 16,
    "num_universal_layers": 2,
    "num_queries": 50,
    "prompt": "a video of",
    "vision": {"frame_px": 224, "patch_px": 14, "width": 1024, "num_layers": 24, "num_heads": 16},
    "text": {
        "vocab_size": 30522,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "max_position_embeddings": 512,
    },
}
"""The published captioners for MSR-VTT and MSVD."""


class LocalTemporal(nn.Module):
    """Depthwise convolution over time (kernel 3) in a residual bottleneck; zero-initialized."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.down_proj = nn.Conv3d(width, width // 2, kernel_size=1)
        self.conv = nn.Conv3d(width // 2, width // 2, kernel_size=(3, 1, 1), padding=(1, 0, 0), groups=width // 2)
        self.up_proj = nn.Conv3d(width // 2, width, kernel_size=1)
        nn.init.zeros_(self.up_proj.weight)
        if self.up_proj.bias is not None:
            nn.init.zeros_(self.up_proj.bias)

    def forward(self, x_BTND: Tensor) -> Tensor:
        x_BDTN1 = self.ln(x_BTND).permute(0, 3, 1, 2)[..., None]
        x_BDTN1 = self.up_proj(_quick_gelu(self.conv(self.down_proj(x_BDTN1))))
        return x_BTND + x_BDTN1[..., 0].permute(0, 2, 3, 1)


class TemporalBlock(nn.Module):
    """A CLIP vision transformer block with temporal convolutions before attention and MLP; they skip the class token."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.lmhra1, self.lmhra2 = LocalTemporal(width), LocalTemporal(width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x_BTLD: Tensor) -> Tensor:
        x_BTLD = self._temporal_conv(self.lmhra1, x_BTLD)
        flat = x_BTLD.flatten(0, 1)
        normed = self.ln_1(flat)
        flat = flat + self.attn(normed, normed, normed, need_weights=False)[0]
        flat = self._temporal_conv(self.lmhra2, flat.view_as(x_BTLD)).flatten(0, 1)
        flat = flat + self.mlp["c_proj"](_quick_gelu(self.mlp["c_fc"](self.ln_2(flat))))
        return flat.view_as(x_BTLD)

    @staticmethod
    def _temporal_conv(module: nn.Module, x_BTLD: Tensor) -> Tensor:
        return torch.cat([x_BTLD[:, :, :1], module(x_BTLD[:, :, 1:])], dim=2)


class VideoFormer(nn.Module):
    """Vision encoder: the mean of the frames' class tokens, then the patch tokens of all frames, (B, L, D)."""

    def __init__(self, *, frame_px: int, patch_px: int, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        patch = (1, patch_px, patch_px)
        self.conv1 = nn.Conv3d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.positional_embedding = nn.Parameter(torch.randn((frame_px // patch_px) ** 2 + 1, width) * 0.02)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList([TemporalBlock(width, num_heads) for _ in range(num_layers)])}
        )

    def forward(self, pixels_BTCHW: Tensor) -> Tensor:
        x_BTND = self.conv1(pixels_BTCHW.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        first = self.class_embedding.expand(*x_BTND.shape[:2], 1, -1)
        x_BTLD = self.ln_pre(torch.cat([first, x_BTND], dim=2) + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            x_BTLD = block(x_BTLD)
        tokens = [x_BTLD[:, :, 0].mean(1, keepdim=True), x_BTLD[:, :, 1:].flatten(1, 2)]
        return self.ln_post(torch.cat(tokens, dim=1))


class UniversalLayers(nn.Module):
    """Layers shared by vision and text: queries attend to the frames; in the last layer the frames attend to the queries."""

    def __init__(self, config: Any, *, num_layers: int, num_queries: int) -> None:
        super().__init__()
        from transformers.models.bert.modeling_bert import BertLayer

        self.latents = nn.Parameter(torch.randn(num_queries, config.hidden_size))
        self.layer = nn.ModuleList([BertLayer(config) for _ in range(num_layers)])
        for layer in self.layer:
            layer.attention.self.is_causal = False  # bidirectional over frames

    def forward(self, frames_BLD: Tensor) -> Tensor:
        queries_BQD = self.latents.expand(len(frames_BLD), -1, -1)
        for layer in self.layer[:-1]:
            queries_BQD = layer(queries_BQD, None, frames_BLD)
        return self.layer[-1](frames_BLD, None, queries_BQD)


class MPlug2(nn.Module):
    """Vision encoder, universal layers and a BERT decoder with cross-attention.

    Args:
        config: `vision` (what `VideoFormer` takes), `text` (a BertConfig as dict; its num_hidden_layers are the
            decoder's), `num_universal_layers`, `num_queries`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import BertConfig, BertLMHeadModel

        text = BertConfig(**{**config["text"], "is_decoder": True, "add_cross_attention": True})
        text._attn_implementation = "sdpa"
        width = text.hidden_size
        self.visual = VideoFormer(**config["vision"])
        is_same = config["vision"]["width"] == width
        self.visn_fc = nn.Identity() if is_same else nn.Linear(config["vision"]["width"], width)
        self.visn_layer_norm = nn.Identity() if is_same else nn.LayerNorm(width, eps=1e-12)
        self.universal = UniversalLayers(
            text, num_layers=config["num_universal_layers"], num_queries=config["num_queries"]
        )
        self.visn_emb_norm = nn.LayerNorm(width, eps=1e-12)
        self.text_decoder: Any = BertLMHeadModel(text)

    def encode_video(self, pixels_BTCHW: Tensor) -> Tensor:
        """Frame tokens that the decoder cross-attends to: (B, L, D)."""
        frames_BLD = self.visn_layer_norm(self.visn_fc(self.visual(pixels_BTCHW)))
        return self.visn_emb_norm(frames_BLD + self.universal(frames_BLD))

    def loss(self, batch: TrainingBatch, tokenizer: Tokenizer, *, prompt_ids: list[int]) -> Tensor:
        """Next-token cross-entropy of the caption and its end token, conditioned on frames and prompt."""
        num_clips = len(batch.token_ids_BM)
        prefix = torch.tensor([tokenizer.start_id, *prompt_ids]).expand(num_clips, -1)
        ids = torch.cat([prefix, batch.token_ids_BM, torch.full((num_clips, 1), tokenizer.pad_id)], dim=1)
        ends = batch.lengths_B + prefix.shape[1]
        ids[torch.arange(num_clips), ends] = tokenizer.end_id
        positions = torch.arange(ids.shape[1])
        is_target = (positions >= prefix.shape[1]) & (positions <= ends[:, None])
        device = batch.pixels_BTCHW.device
        logits = self.text_decoder(
            input_ids=ids.to(device),
            attention_mask=(positions <= ends[:, None]).long().to(device),
            encoder_hidden_states=self.encode_video(batch.pixels_BTCHW),
            use_cache=False,
        ).logits
        targets = ids.masked_fill(~is_target, -100).to(device)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def convert_state_dict(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of `MPlug2` from that of a published caption checkpoint (its `model` or `module`).

    Raises:
        CheckpointMismatchError: a tensor of `MPlug2` is missing.
    """
    num_universal = config["num_universal_layers"]
    encoder_layers = {int(name.split(".")[3]) for name in state if name.startswith("text_encoder.encoder.layer.")}
    first = max(encoder_layers, default=num_universal - 1) + 1 - num_universal
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("visual_encoder.visual."):
            renamed[name.removeprefix("visual_encoder.")] = tensor
        elif name.startswith("text_encoder.encoder.layer."):
            _, _, _, number, rest = name.split(".", 4)
            if rest == "latents":
                renamed["universal.latents"] = tensor
            elif int(number) >= first:
                renamed[f"universal.layer.{int(number) - first}.{rest}"] = tensor
        elif name.startswith(("visn_", "text_decoder.")):
            renamed[name] = tensor
    with torch.device("meta"):
        expected = set(MPlug2(config).state_dict())
    # position buffers, tied weights and text-only layers differ between versions
    tied = {"text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias"}
    if missing := sorted(expected - renamed.keys() - tied):
        raise CheckpointMismatchError(
            f"this is not a caption checkpoint of mPLUG-2: it lacks {len(missing)} tensors, such as {missing[0]}"
        )
    renamed |= {
        "text_decoder.cls.predictions.decoder.weight": renamed["text_decoder.bert.embeddings.word_embeddings.weight"],
        "text_decoder.cls.predictions.decoder.bias": renamed["text_decoder.cls.predictions.bias"],
    }
    return {name: renamed[name] for name in sorted(expected)}


def convert_checkpoint(
    checkpoint: str | Path, tokenizer: Tokenizer, folder: str | Path, config: Mapping[str, Any] | None = None
) -> Path:
    """Convert a published checkpoint (a .pth file) to a checkpoint folder; `config` defaults to `LARGE_CONFIG`.

    Raises:
        CheckpointMismatchError: as `convert_state_dict`, or where shapes or the tokenizer do not fit.
    """
    config = {**(config or LARGE_CONFIG), "num_tokens": (config or LARGE_CONFIG)["text"]["vocab_size"]}
    tree = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = MPlug2(config)
    try:
        model.load_state_dict(convert_state_dict(tree.get("model", tree.get("module", tree)), config))
    except RuntimeError as error:
        raise CheckpointMismatchError(f"{checkpoint} does not fit: {hub.first_line(error)}") from error
    return write_checkpoint_folder(folder, config=config, tokenizer=tokenizer, model=model)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
