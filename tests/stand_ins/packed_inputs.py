"""Small backbones with nothing left at zero, and inputs of a few samples for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from packing.grid import Shape3
from train.backbones.interface import PackedInputs
from train.backbones.registry import build
from train.layers.segments import Segments
from train.layers.token_mask import TokenMask
from train.text.encoder import EncodedText

TOKEN_WIDTH, TEXT_WIDTH, POOLED_WIDTH = 6, 10, 7
GRIDS: tuple[Shape3, ...] = ((2, 3, 2), (1, 1, 5), (3, 2, 4))
TEXT_LENGTHS = (3, 1, 4)
UNET: dict[str, object] = {
    "in_channels": TOKEN_WIDTH,
    "out_channels": TOKEN_WIDTH,
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
"""Of Stable Diffusion's class, with one level: it halves nothing, so any size runs."""
HALVING: dict[str, object] = UNET | {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
"""With two levels: latents of even sizes."""
SIZES: dict[str, dict[str, object]] = {
    "dit": {"width": 24, "depth": 2, "num_heads": 2},
    "temporal": {"width": 24, "depth": 2, "num_heads": 2},
    "temporal-unet": {"unet": UNET},
    "mdt": {"width": 24, "depth": 4, "num_heads": 2, "decoder_depth": 2},
    "uvit": {"width": 24, "depth": 4, "num_heads": 2},
    "separable": {"width": 24, "depth": 2, "num_heads": 2},
    "diffit": {"width": 24, "depth": 2, "num_heads": 2},
    "diffit_pixels": {"width": 12, "depth": 1, "num_heads": 1, "stages": 3, "window": 2},
}
"""Smallest settings of each backbone that use all of its parts."""
TRANSFORMERS = tuple(name for name, sizes in SIZES.items() if "width" in sizes)
"""Backbones of any width, which know their own cost."""


def make_backbone(name: str, seed: int = 0, **changes: object) -> nn.Module:
    """A small backbone whose layers that start at or near zero are filled: at initialisation all outputs could be equal."""
    torch.manual_seed(seed)
    widths = {"token_width": TOKEN_WIDTH, "text_width": TEXT_WIDTH, "pooled_width": POOLED_WIDTH}
    model = build(name, **(widths | SIZES[name] | changes))
    for parameter in model.parameters():
        if parameter.detach().abs().max() < 0.1:
            nn.init.normal_(parameter, std=0.2)
    return model


def grid_positions(grid: Shape3) -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(n) for n in grid)).reshape(-1, 3)


def make_inputs(
    seed: int = 1,
    *,
    grids: Sequence[Shape3] = GRIDS,
    text_lengths: Sequence[int] | None = None,
    kept: Sequence[Sequence[int]] | None = None,
) -> PackedInputs:
    """A pack of samples of these token grids.

    Args:
        kept: tokens that are left of each sample after token dropping, in ascending order; None: all.
    """
    generator = torch.Generator().manual_seed(seed)
    text_lengths = [TEXT_LENGTHS[s % 3] for s in range(len(grids))] if text_lengths is None else text_lengths
    positions = [grid_positions(grid) for grid in grids]
    if kept is not None:
        positions = [position[list(index)] for position, index in zip(positions, kept, strict=True)]
    num_tokens = sum(len(position) for position in positions)
    return PackedInputs(
        tokens_LD=torch.randn(num_tokens, TOKEN_WIDTH, generator=generator),
        position_L3=torch.cat(positions),
        segments=Segments.from_lengths([len(position) for position in positions]),
        timestep_S=torch.linspace(0.1, 0.93, len(grids)),
        text=EncodedText(
            torch.randn(sum(text_lengths), TEXT_WIDTH, generator=generator),
            Segments.from_lengths(text_lengths),
            torch.randn(len(grids), POOLED_WIDTH, generator=generator),
        ),
        token_shapes=tuple(grids),
    )


def samples_of(inputs: PackedInputs, order: Sequence[int]) -> PackedInputs:
    """Samples of a pack, in this order, as a pack of their own."""
    of_tokens, of_text = (_index(segments, order) for segments in (inputs.segments, inputs.text.segments))
    samples = list(order)

    def chosen(tensor: torch.Tensor | None, index: torch.Tensor | list[int]) -> torch.Tensor | None:
        return None if tensor is None else tensor[index]

    text = inputs.text
    text_lengths = [text.segments.lengths[s] for s in order]
    drop = inputs.drop_text_S
    assert drop is None or isinstance(drop, Sequence)
    return PackedInputs(
        tokens_LD=inputs.tokens_LD[of_tokens],
        position_L3=inputs.position_L3[of_tokens],
        segments=Segments.from_lengths([inputs.segments.lengths[s] for s in order]),
        timestep_S=inputs.timestep_S[samples],
        text=EncodedText(text.text_MC[of_text], Segments.from_lengths(text_lengths), text.pooled_SC[samples]),
        drop_text_S=None if drop is None else [drop[s] for s in order],
        condition_mask_L=chosen(inputs.condition_mask_L, of_tokens),
        noised_LD=chosen(inputs.noised_LD, of_tokens),
        hint_LD=chosen(inputs.hint_LD, of_tokens),
        token_mask=_mask_of(inputs, of_tokens, order),
        scalars={name: value_S[samples] for name, value_S in inputs.scalars.items()},
        token_shapes=tuple(inputs.token_shapes[s] for s in order),
    )


def _mask_of(inputs: PackedInputs, of_tokens: torch.Tensor, order: Sequence[int]) -> TokenMask | None:
    if inputs.token_mask is None:
        return None
    is_masked_L = torch.zeros(inputs.segments.num_tokens, dtype=torch.bool)
    is_masked_L[inputs.token_mask.masked_index_N] = True
    return TokenMask.of(is_masked_L[of_tokens], Segments.from_lengths([inputs.segments.lengths[s] for s in order]))


def _index(segments: Segments, order: Sequence[int]) -> torch.Tensor:
    bounds = segments.cu_seqlens.tolist()
    return torch.cat([torch.arange(bounds[s], bounds[s + 1]) for s in order])


def each_alone(model: nn.Module, inputs: PackedInputs) -> torch.Tensor:
    """The predictions of every sample in a pack of its own, joined."""
    return torch.cat([model(samples_of(inputs, [s])) for s in range(len(inputs.segments))])


def gradients(model: nn.Module, prediction_LD: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a random weighting of the prediction."""
    weights = torch.randn(prediction_LD.shape, generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    (prediction_LD * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
