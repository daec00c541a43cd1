"""Video LDM over a frozen UNet2DConditionModel of diffusers: temporal layers attached by forward hooks.

    model = DenseBackbone(unet=read_config("diffusers:ID#unet"), token_width=4, text_width=768, pooled_width=768)
    load_weights(model.base, read_weights("diffusers:ID#unet"), "diffusers:ID#unet")
    prediction_LD = model(inputs)                       # at first that of the U-Net for every frame, to the bit

A `TemporalMix` (temporal.py) follows each ResnetBlock2D and Transformer2DModel; the U-Net is not rewritten, and its weights
keep their published names. It is called on grids: samples of equal (frames, rows, columns) share a call. A token is one
latent cell (patch 1 1 1). The learned null caption of dropped texts belongs to the temporal weights.

Shape suffixes: L tokens of a pack, S samples of a pack, B samples of one call, N = B x T frames, M text tokens, D width,
C channels, T frames, h rows, w columns.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packing.grid import Shape3
from recaption.errors import UsageError
from train.backbones.embedders import TextEmbedder, TimestepEmbedder
from train.backbones.interface import PackedInputs
from train.backbones.pretrained.measured import Measured, measure
from train.backbones.pretrained.unet import build_unet
from train.backbones.temporal import LAYERS, TemporalMix, check_layers, context_of
from train.diffusion.noise_schedules import NUM_DISCRETE_STEPS
from train.layers.attention import packed_attention
from train.layers.layouts import Layout, LayoutKey
from train.layers.rope import rotary_cos_sin
from train.layers.segments import Segments
from train.layers.text_condition import TextSelection, with_null_captions
from train.parallel.transfer import copied

MIXED_CLASSES = ("ResnetBlock2D", "Transformer2DModel")
"""Modules of the U-Net that a temporal layer follows."""
HEAD_WIDTH = 64
Call = dict[str, Any]
"""What temporal layers need of a call of the U-Net besides its features."""


class DenseBackbone(nn.Module):
    """A U-Net of images, and a temporal layer after each of its residual and attention blocks."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "token dropping": "a U-Net convolves whole frames, so no token can be left out of them",
        "sizes": "a U-Net halves the latents several times, so their rows and columns must divide by that",
    }
    base_prefix: ClassVar[str] = "base."

    def __init__(
        self,
        *,
        unet: Mapping[str, Any],
        token_width: int,
        text_width: int,
        pooled_width: int,
        layers: Sequence[str] = LAYERS,
        attention_backend: str = "auto",
        hint_width: int = 0,
        scalars: Sequence[str] = (),
    ) -> None:
        """
        Args:
            unet: config of the UNet2DConditionModel.
            token_width, text_width: must be those of the U-Net.
            layers: of `TemporalSettings`.
            attention_backend: of the temporal layers.
            hint_width: numbers per token of `PackedInputs.hint_LD`, added to the U-Net's first features.
            scalars: seen by the temporal layers only.

        Raises:
            UsageError: a U-Net of other widths, or one that takes more than a text.
        """
        super().__init__()
        check_layers(layers)
        self.base = build_unet(unet)
        _check_unet(self.base.config, token_width, text_width)
        self.config: dict[str, Any] = {
            "unet": dict(unet),
            "token_width": token_width,
            "text_width": text_width,
            "pooled_width": pooled_width,
            "layers": list(layers),
            "hint_width": hint_width,
            "scalars": list(scalars),
        }
        self.layout_keys: tuple[LayoutKey, ...] = ()
        channels: list[int] = list(self.base.config.block_out_channels)
        self.side_multiple = 2 ** (len(channels) - 1)
        width = channels[-1]
        self.temporal_t_embedder = TimestepEmbedder(width, scalars=scalars)
        self.temporal_text_embedder = TextEmbedder(text_width, pooled_width, width)
        self.hint_embedder = nn.Linear(hint_width, channels[0], bias=False) if hint_width else None
        attend = functools.partial(packed_attention, backend=attention_backend)
        self.temporal = nn.ModuleDict()
        for name, module in list(self.base.named_modules()):
            if type(module).__name__ in MIXED_CLASSES:
                of_module = int(module.out_channels or module.in_channels)  # type: ignore[arg-type]
                self.temporal[name.replace(".", "-")] = TemporalMix(
                    of_module,
                    max(1, of_module // HEAD_WIDTH),
                    attend,
                    layers=layers,
                    context_width=token_width + 1,
                    condition_width=width,
                )
                module.register_forward_hook(functools.partial(self._mixed, name.replace(".", "-")))
        self.base.conv_in.register_forward_hook(self._with_hint)  # type: ignore[union-attr]
        self._call: Call | None = None
        for block in self._unet_blocks():
            block.register_forward_pre_hook(self._passing_call, with_kwargs=True)
            block.forward = self._taking_call(block.forward)
        self._initialise()

    def _initialise(self) -> None:
        for part in (self.temporal_t_embedder, self.temporal_text_embedder, self.temporal):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        self.temporal_t_embedder.init_weights()
        for mix in self.temporal.values():
            mix.init_weights()
        if self.hint_embedder is not None:
            nn.init.zeros_(self.hint_embedder.weight)

    @staticmethod
    def base_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """What must be equal for the weights of another U-Net to take the place of this one's."""
        return {"unet": config["unet"]}

    def _unet_blocks(self) -> list[nn.Module]:
        return [*self.base.down_blocks, self.base.mid_block, *self.base.up_blocks]  # type: ignore[misc, list-item, union-attr]

    @property
    def blocks(self) -> nn.ModuleList:
        """Of the U-Net, then the temporal layers: units of sharding and activation checkpointing."""
        return nn.ModuleList([*self._unet_blocks(), *self.temporal.values()])

    # --- forward ------------------------------------------------------------------------------------------------------

    def forward(self, inputs: PackedInputs) -> Tensor:
        """(L, token_width) float32: the prediction for every token.

        Raises:
            UsageError: a sample whose rows or columns the U-Net cannot halve, or without some of its tokens.
        """
        self._check_shapes(inputs)
        condition = self._conditions(inputs)
        output_LD: Tensor | None = None
        for shape in dict.fromkeys(inputs.token_shapes):
            samples = [sample for sample, other in enumerate(inputs.token_shapes) if other == shape]
            sample_B = copied(torch.tensor(samples), inputs.tokens_LD.device)
            _, index_L = inputs.segments.selected(samples, sample_B)
            part_LD = self._on_grids(condition, shape, samples, sample_B, index_L)
            if output_LD is None:
                output_LD = part_LD.new_zeros(inputs.segments.num_tokens, part_LD.shape[1])
            output_LD = output_LD.index_copy(0, index_L, part_LD)
        assert output_LD is not None, "a pack has samples"
        return output_LD

    def _conditions(self, inputs: PackedInputs) -> Call:
        """Of the whole pack: what its calls select from."""
        text_MD, text_segments, pooled_SD = self.temporal_text_embedder(inputs)
        embedder = self.temporal_text_embedder
        spatial_MC, _, _ = with_null_captions(
            inputs.text.text_MC,
            inputs.text.segments,
            inputs.text.pooled_SC,
            TextSelection.of(inputs.drop_text_S, inputs.text.segments),
            null_text_MC=embedder.null_text_embedding_MC,
            null_pooled_C=embedder.null_pooled_embedding_C,
        )
        return {
            "inputs": inputs,
            "condition_SD": self.temporal_t_embedder(inputs) + pooled_SD,
            "context_LC": context_of(inputs),
            "text_MD": text_MD,
            "text_segments": text_segments,
            "spatial_MC": spatial_MC,
        }

    def _on_grids(
        self, condition: Call, shape: Shape3, samples: Sequence[int], sample_B: Tensor, index_L: Tensor
    ) -> Tensor:
        """Tokens of the samples of one shape, by one call of the U-Net."""
        inputs: PackedInputs = condition["inputs"]
        num_frames = shape[0]
        text_segments, index_M = condition["text_segments"].selected(samples, sample_B)
        text_BMC, mask_BM = _padded(condition["spatial_MC"][index_M], text_segments)
        self._call = {
            "shape": shape,
            "condition_BD": condition["condition_SD"][sample_B],
            "context_NChw": _to_frames(condition["context_LC"][index_L], shape),
            "text_MD": condition["text_MD"][index_M],
            "text_segments": text_segments,
            "hint_NChw": None if inputs.hint_LD is None else _to_frames(inputs.hint_LD[index_L], shape),
            "made": {},
        }
        timestep_N = inputs.timestep_S[sample_B].repeat_interleave(num_frames)
        try:
            prediction_NChw = self.base(
                _to_frames(inputs.all_noised_LD[index_L], shape),
                (timestep_N * NUM_DISCRETE_STEPS - 1).clamp(min=0),  # step k of 0 to 999 is time (k + 1) / 1000
                text_BMC.repeat_interleave(num_frames, dim=0),
                encoder_attention_mask=None if mask_BM is None else mask_BM.repeat_interleave(num_frames, dim=0),
                return_dict=False,
            )[0]
        finally:
            self._call = None
        return prediction_NChw.float().permute(0, 2, 3, 1).flatten(0, 2)

    def _check_shapes(self, inputs: PackedInputs) -> None:
        if [rows * columns * frames for frames, rows, columns in inputs.token_shapes] != list(inputs.segments.lengths):
            raise UsageError(f"backbone temporal-unet has no token dropping: {self.unsupported['token dropping']}")
        for _, rows, columns in inputs.token_shapes:
            if rows % self.side_multiple or columns % self.side_multiple:
                raise UsageError(
                    f"this U-Net takes latents whose rows and columns divide by {self.side_multiple}, not {rows}x{columns}: "
                    "prepare clips of such sizes (--shard.buckets.size-multiple-px)"
                )

    # --- hooks --------------------------------------------------------------------------------------------------------

    def _passing_call(self, block: nn.Module, args: tuple[Any, ...], kwargs: Call) -> tuple[tuple[Any, ...], Call]:
        """Make the call an argument of the block: recomputed in the backward, it finds it again."""
        return args, kwargs | {"call": self._call}

    def _taking_call(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, call: Call | None = None, **kwargs: Any) -> Any:
            before, self._call = self._call, call
            try:
                return forward(*args, **kwargs)
            finally:
                self._call = before

        return run

    def _with_hint(self, module: nn.Module, args: Any, features_NChw: Tensor) -> Tensor:
        assert self._call is not None
        hint_NChw = self._call["hint_NChw"]
        if (self.hint_embedder is None) != (hint_NChw is None):
            raise ValueError("a hint goes with a model that has `hint_width`, and only with such a model")
        if self.hint_embedder is None:
            return features_NChw
        return features_NChw + self.hint_embedder(hint_NChw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _mixed(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """The output of a block of the U-Net with its temporal layer after it."""
        features_NChw = output if isinstance(output, Tensor) else output[0]
        call, mix = self._call, self.temporal[name]
        assert call is not None, "blocks are called through `forward`"
        num_frames = call["shape"][0]
        rows, columns = features_NChw.shape[2:]
        key = rows, columns, mix.head_width  # type: ignore[union-attr]
        if key not in call["made"]:
            call["made"][key] = _AtResolution(call, rows, columns, key[2])
        at: _AtResolution = call["made"][key]
        x_LD = _by_place(features_NChw, num_frames)
        mixed_LD = mix(
            x_LD.float(), call["condition_BD"], at.context_LC, call["text_MD"], *at.along_time, at.segments,
            call["text_segments"], at.places,
        )  # fmt: skip
        mixed_NChw = _from_places(mixed_LD.to(features_NChw.dtype), num_frames, rows, columns)
        # in the memory format of the features: convolutions of another one round differently
        mixed_NChw = torch.empty_like(features_NChw).copy_(mixed_NChw)
        if isinstance(output, Tensor):
            return mixed_NChw
        return (mixed_NChw, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed_NChw)

    # --- cost ---------------------------------------------------------------------------------------------------------

    @property
    def _measured(self) -> Measured:
        """Of one call without memory, per token: convolutions and products grow with the tokens alone."""
        return _measured(json.dumps(self.config), 4 * self.side_multiple)

    def flops(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], token_shapes: Sequence[Shape3] = ()
    ) -> float:
        """Forward and backward, from what frames of a middle size take per token."""
        return self._measured.flops_per_token * sum(num_tokens)

    def activation_bytes(
        self, num_tokens: Sequence[int], num_text_tokens: Sequence[int], *, precision: str, checkpointed: bool
    ) -> int:
        return self._measured.activation_bytes(sum(num_tokens), precision=precision, checkpointed=checkpointed)


@functools.cache
def _measured(config: str, side: int) -> Measured:
    """Counting takes seconds: once for each architecture."""
    return measure(lambda: DenseBackbone(**json.loads(config)), (2, side, side))


class _AtResolution:
    """What temporal layers need at one resolution of the U-Net, in the order (sample, row, column, frame)."""

    def __init__(self, call: Call, rows: int, columns: int, head_width: int) -> None:
        num_frames, context_NChw = call["shape"][0], call["context_NChw"]
        num_samples, device = len(context_NChw) // num_frames, context_NChw.device
        num_places = num_samples * rows * columns
        places = Segments.from_lengths([num_frames] * num_places, device)
        self.places = Layout(places, places, None, None)
        self.segments = Segments.from_lengths([num_frames * rows * columns] * num_samples, device)
        frame_L = torch.arange(num_frames, device=device).repeat(num_places)
        cos_LF, sin_LF = rotary_cos_sin(F.pad(frame_L[:, None], (0, 2)), head_width)
        is_alone_L1 = torch.full((len(frame_L), 1), num_frames == 1, device=device)
        self.along_time = cos_LF, sin_LF, (frame_L > 0)[:, None], is_alone_L1
        factor = context_NChw.shape[2] // rows
        self.context_LC = _by_place(F.avg_pool2d(context_NChw, factor) if factor > 1 else context_NChw, num_frames)


def _check_unet(config: Any, token_width: int, text_width: int) -> None:
    """Raises UsageError where the U-Net does not fit the latents and the text encoder."""
    if config.in_channels != token_width or config.out_channels != token_width:
        raise UsageError(
            f"this U-Net takes {config.in_channels} and gives {config.out_channels} latent channels, tokens have "
            f"{token_width} numbers: encode with its own autoencoder, and leave the patch at 1 1 1"
        )
    if config.cross_attention_dim != text_width:
        raise UsageError(
            f"this U-Net was trained with texts of width {config.cross_attention_dim}, the text encoder's are "
            f"{text_width} wide: choose its own (clip:ViT-L-14/openai for Stable Diffusion 1)"
        )
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds"):
        if getattr(config, name, None):
            raise UsageError(f"a U-Net with {name} takes more than a text, a noise level and latents: not supported")


def _to_frames(x_LD: Tensor, shape: Shape3) -> Tensor:
    """Tokens of samples of one shape -> (N, C, h, w)."""
    return x_LD.unflatten(0, (-1, *shape[1:])).permute(0, 3, 1, 2)


def _by_place(x_NChw: Tensor, num_frames: int) -> Tensor:
    """(N, C, h, w) -> tokens in the order (sample, row, column, frame)."""
    return x_NChw.unflatten(0, (-1, num_frames)).permute(0, 3, 4, 1, 2).flatten(0, 3)


def _from_places(x_LD: Tensor, num_frames: int, rows: int, columns: int) -> Tensor:
    """The inverse of `_by_place`."""
    return x_LD.unflatten(0, (-1, rows, columns, num_frames)).permute(0, 3, 4, 1, 2).flatten(0, 1)


def _padded(text_MC: Tensor, segments: Segments) -> tuple[Tensor, Tensor | None]:
    """(texts (B, M, C) padded with zeros, bool mask (B, M) of their tokens; None where all are of one length)."""
    longest = segments.max_length
    if all(length == longest for length in segments.lengths):
        return text_MC.unflatten(0, (len(segments), longest)), None
    place_M = torch.arange(len(text_MC), device=text_MC.device) - segments.cu_seqlens[:-1][segments.segment_ids_L]
    row_M = segments.segment_ids_L * longest + place_M
    padded = text_MC.new_zeros(len(segments) * longest, text_MC.shape[1]).index_copy(0, row_M, text_MC)
    length_B1 = torch.diff(segments.cu_seqlens)[:, None]
    return padded.unflatten(0, (-1, longest)), torch.arange(longest, device=text_MC.device)[None] < length_B1
