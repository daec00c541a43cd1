"""mPLUG-2 (arXiv 2302.00402), its caption path: what of the modular model turns a video into words.

    frames -> vision transformer, each block with two small convolutions over time beside attention (local temporal)
           -> universal layers: learned queries read the frames, then the frames read the queries; added to the frames
           -> text decoder, each layer with self-attention over the words and cross-attention to the frames (fusion)

The decoder goes on from a prompt ("a video of"), on which no loss is taken. Modules are named as in the published source,
so that `from_published` only has to choose among the tensors of a published caption checkpoint. Those tensors were not at
hand: their names are read off that source. Left out are its text encoder below the universal layers and its separate fusion
encoder, which captions do not pass through.

Shapes: B clips, T frames, N patches of a frame, L = 1 + T*N frame tokens, Q queries, M words, D widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption import hub
from recaption.captioners.backends.checkpoint_folder import Lesson, Words, write_own
from recaption.errors import CheckpointMismatchError

FORMAT = "mplug2-1"


PUBLISHED_LARGE: dict[str, Any] = {
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
"""Of the published captioners for MSR-VTT and MSVD."""


class LocalTemporal(nn.Module):
    """What the same place shows one frame earlier and later; starts without effect."""

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
    """A block of CLIP's vision transformer between convolutions over time, which the class token does not pass."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.lmhra1, self.lmhra2 = LocalTemporal(width), LocalTemporal(width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x_BTLD: Tensor) -> Tensor:
        x_BTLD = self._over_time(self.lmhra1, x_BTLD)
        flat = x_BTLD.flatten(0, 1)
        normed = self.ln_1(flat)
        flat = flat + self.attn(normed, normed, normed, need_weights=False)[0]
        flat = self._over_time(self.lmhra2, flat.view_as(x_BTLD)).flatten(0, 1)
        flat = flat + self.mlp["c_proj"](_quick_gelu(self.mlp["c_fc"](self.ln_2(flat))))
        return flat.view_as(x_BTLD)

    @staticmethod
    def _over_time(module: nn.Module, x_BTLD: Tensor) -> Tensor:
        return torch.cat([x_BTLD[:, :, :1], module(x_BTLD[:, :, 1:])], dim=2)


class VideoFormer(nn.Module):
    """Frames to tokens: one for the clip (mean of the frames' class tokens), then all patches of all frames."""

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


class Universal(nn.Module):
    """Layers that vision and text share. Queries gather what the frames show; in the last layer the frames read them."""

    def __init__(self, config: Any, *, num_layers: int, num_queries: int) -> None:
        super().__init__()
        from transformers.models.bert.modeling_bert import BertLayer

        self.latents = nn.Parameter(torch.randn(num_queries, config.hidden_size))
        self.layer = nn.ModuleList([BertLayer(config) for _ in range(num_layers)])
        for layer in self.layer:
            layer.attention.self.is_causal = False  # of frames, all see all

    def forward(self, frames_BLD: Tensor) -> Tensor:
        queries_BQD = self.latents.expand(len(frames_BLD), -1, -1)
        for layer in self.layer[:-1]:
            queries_BQD = layer(queries_BQD, None, frames_BLD)
        return self.layer[-1](frames_BLD, None, queries_BQD)


class MPlug2(nn.Module):
    """
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
        self.universal = Universal(text, num_layers=config["num_universal_layers"], num_queries=config["num_queries"])
        self.visn_emb_norm = nn.LayerNorm(width, eps=1e-12)
        self.text_decoder: Any = BertLMHeadModel(text)

    def see(self, pixels_BTCHW: Tensor) -> Tensor:
        """What the decoder attends to: (B, L, D)."""
        frames_BLD = self.visn_layer_norm(self.visn_fc(self.visual(pixels_BTCHW)))
        return self.visn_emb_norm(frames_BLD + self.universal(frames_BLD))

    def loss(self, batch: Lesson, words: Words, *, prompt: list[int]) -> Tensor:
        """Cross-entropy of each word and of the end, given the frames, the prompt and the words before."""
        num_clips = len(batch.ids_BM)
        first = torch.tensor([words.start, *prompt]).expand(num_clips, -1)
        ids = torch.cat([first, batch.ids_BM, torch.full((num_clips, 1), words.pad)], dim=1)
        ends = batch.lengths_B + first.shape[1]
        ids[torch.arange(num_clips), ends] = words.end
        places = torch.arange(ids.shape[1])
        is_taught = (places >= first.shape[1]) & (places <= ends[:, None])
        device = batch.pixels_BTCHW.device
        logits = self.text_decoder(
            input_ids=ids.to(device),
            attention_mask=(places <= ends[:, None]).long().to(device),
            encoder_hidden_states=self.see(batch.pixels_BTCHW),
            use_cache=False,
        ).logits
        targets = ids.masked_fill(~is_taught, -100).to(device)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def from_published(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a published caption checkpoint (its `model` or `module`) under our names.

    Raises:
        CheckpointMismatchError: a tensor that captions need is missing.
    """
    num_universal = config["num_universal_layers"]
    encoder = {int(name.split(".")[3]) for name in state if name.startswith("text_encoder.encoder.layer.")}
    first = max(encoder, default=num_universal - 1) + 1 - num_universal
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
        wanted = set(MPlug2(config).state_dict())
    # buffers of positions, tied weights and layers that only text passes through come and go between versions
    tied = {"text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias"}
    if missing := sorted(wanted - renamed.keys() - tied):
        raise CheckpointMismatchError(
            f"this is no caption checkpoint of mPLUG-2: it lacks {len(missing)} tensors, such as {missing[0]}"
        )
    renamed |= {
        "text_decoder.cls.predictions.decoder.weight": renamed["text_decoder.bert.embeddings.word_embeddings.weight"],
        "text_decoder.cls.predictions.decoder.bias": renamed["text_decoder.cls.predictions.bias"],
    }
    return {name: renamed[name] for name in sorted(wanted)}


def convert(checkpoint: str | Path, words: Words, folder: str | Path, config: Mapping[str, Any] | None = None) -> Path:
    """Make a captioner folder of a published checkpoint (a .pth file); `config` is that of the large model by default.

    Raises:
        CheckpointMismatchError: as `from_published`, or where shapes or the tokenizer do not fit.
    """
    config = {**(config or PUBLISHED_LARGE), "num_tokens": (config or PUBLISHED_LARGE)["text"]["vocab_size"]}
    tree = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = MPlug2(config)
    try:
        model.load_state_dict(from_published(tree.get("model", tree.get("module", tree)), config))
    except RuntimeError as error:
        raise CheckpointMismatchError(f"{checkpoint} does not fit: {hub.first_line(error)}") from error
    return write_own(folder, config=config, words=words, model=model)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
