"""DiffiT: published parameter counts, and attention against one linear layer over the concatenation of tokens and time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import make_backbone, make_inputs
from train.backbones.diffit import SIZES, Diffit, DiffitSettings
from train.backbones.registry import build
from train.layers.attention import packed_attention
from train.layers.packed_attention_layers import TimeSelfAttention
from train.layers.relative_bias import PackedPositions
from train.layers.segments import Segments

CHANNELS, PATCH = 4, 2


@pytest.mark.parametrize(("depth", "published"), [(28, 561_330_144), (30, 601_201_664)])
def test_parameters_are_as_many_as_published(depth: int, published: int) -> None:
    """XL on latents of 32 x 32, patches of 2 x 2; the fixed positions are counted there."""
    with torch.device("meta"):
        model = build(
            "diffit", token_width=CHANNELS * PATCH**2, text_width=8, pooled_width=8, position_table=(16, 16),
            relative_bias=(1, 16, 16), cross_attention=False, **(SIZES["XL"] | {"depth": depth}),
        )  # fmt: skip
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    ours_alone = [name for name in parameters if name.startswith("text_embedder.") or "condition_mask" in name]
    shared = sum(count for name, count in parameters.items() if name not in ours_alone)
    labels = 1001 * 1152  # in place of text: 1000 classes and the null label
    variance = CHANNELS * PATCH**2 * (1152 + 1)  # predicted there, not here
    assert shared + labels + variance + model.pos_embed_LD.numel() == published


def make_attention(**options) -> tuple[TimeSelfAttention, torch.Tensor, torch.Tensor, Segments, PackedPositions]:
    torch.manual_seed(0)
    attention = TimeSelfAttention(24, 2, packed_attention, qk_norm=False, **options)
    inputs = make_inputs()
    segments = inputs.segments
    x_LD, condition_SD = torch.randn(segments.num_tokens, 24), torch.randn(len(segments), 24)
    return (
        attention, x_LD.requires_grad_(), condition_SD.requires_grad_(), segments,
        PackedPositions(inputs.position_L3, segments),
    )  # fmt: skip


def by_concatenation(attention, x_LD, condition_SD, segments) -> torch.Tensor:
    """[q, k, v] as one linear layer over [x; c], sample by sample, attention written out with the table read by loops."""
    weight = torch.cat([attention.qkv.weight, attention.time_qkv.weight], dim=1)
    bias = attention.qkv.bias + attention.time_qkv.bias
    positions = make_inputs().position_L3.split(list(segments.lengths))
    outputs = []
    for tokens, condition, position in zip(x_LD.split(list(segments.lengths)), condition_SD, positions, strict=True):
        both = torch.cat([tokens, condition.expand(len(tokens), -1)], dim=1)
        q, k, v = F.linear(both, weight, bias).view(len(tokens), 3, 2, 12).unbind(1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / 12**0.5
        if attention.relative_bias is not None:
            reach = attention.relative_bias.reach
            table = attention.relative_bias.table_NH.view(*(2 * n - 1 for n in reach), 2)
            at = [[[min(max(a - b, 1 - n), n - 1) + n - 1 for a, b, n in zip(i, j, reach)] for j in position.tolist()]
                  for i in position.tolist()]  # fmt: skip
            scores = scores + torch.stack([torch.stack([table[tuple(o)] for o in row]) for row in at]).permute(2, 0, 1)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1))
    return attention.out(torch.cat(outputs))


@pytest.mark.parametrize("relative_bias", [(), (2, 2, 3)])
def test_attention_is_that_of_one_layer_over_tokens_and_condition(relative_bias):
    attention, x_LD, condition_SD, segments, positions = make_attention(relative_bias=relative_bias)
    packed = attention(x_LD, None, segments, condition_SD, positions)
    expected = by_concatenation(attention, x_LD, condition_SD, segments)
    torch.testing.assert_close(packed, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn(packed.shape)
    wanted = [x_LD, condition_SD, *attention.parameters()]
    for got, exact in zip(
        *(torch.autograd.grad((out * weight).sum(), wanted) for out in (packed, expected)), strict=True
    ):
        torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-4)


def test_a_condition_of_zero_weight_is_plain_biased_attention():
    attention, x_LD, condition_SD, segments, positions = make_attention(relative_bias=(2, 2, 3))
    for parameter in attention.time_qkv.parameters():
        torch.nn.init.zeros_(parameter)
    plain = super(TimeSelfAttention, attention).forward(x_LD, None, segments, positions)
    torch.testing.assert_close(attention(x_LD, None, segments, condition_SD, positions), plain, rtol=0, atol=0)


def test_time_in_the_bias_alone_changes_attention_by_its_gain():
    attention, x_LD, condition_SD, segments, positions = make_attention(time_in="bias", relative_bias=(2, 2, 3))
    torch.nn.init.normal_(attention.relative_bias.table_NH)
    for parameter in attention.time_gain.parameters():
        torch.nn.init.zeros_(parameter)
    plain = attention(x_LD, None, segments, condition_SD, positions)
    torch.nn.init.constant_(attention.time_gain.bias, 1.0)
    doubled = attention(x_LD, None, segments, condition_SD, positions)
    attention.relative_bias.table_NH.data *= 2
    torch.nn.init.zeros_(attention.time_gain.bias)
    expected = attention(x_LD, None, segments, condition_SD, positions)
    torch.testing.assert_close(doubled, expected)
    assert (doubled - plain).abs().max() > 1e-3


def test_new_models_predict_zero_and_every_part_is_in_the_graph():
    model = Diffit(token_width=6, text_width=10, pooled_width=7, width=24, depth=2, num_heads=2)
    assert not model(make_inputs()).any()
    model = make_backbone("diffit")
    model(make_inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_time_in_the_bias_needs_one():
    with pytest.raises(UsageError, match="relative_bias"):
        DiffitSettings(time_in="bias").check()
    with pytest.raises(UsageError, match="relative_bias"):
        make_backbone("diffit", time_in="bias")
    with pytest.raises(UsageError, match="choose one of qkv, bias"):
        DiffitSettings(time_in="scale").check()
