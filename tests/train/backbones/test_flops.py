"""FLOPs against torch's own counter, and the peak of known devices."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train.backbones import flops
from train.backbones.dit import DitBlock
from train.backbones.registry import build
from train.engine.device_peak import peak_flops
from train.layers.attention import packed_attention
from train.layers.segments import Segments


def test_flops_of_a_pack_are_what_torch_counts_in_the_blocks():
    lengths, text_lengths, width = [48, 16], [5, 3], 64
    block = DitBlock(width, 2, 4.0, packed_attention)
    rotary = (torch.ones(64, 16), torch.zeros(64, 16))
    with FlopCounterMode(display=False) as counted:
        block(
            torch.randn(64, width, requires_grad=True), rotary, Segments.from_lengths(lengths), torch.randn(2, width),
            torch.randn(8, width, requires_grad=True), Segments.from_lengths(text_lengths),
        ).sum().backward()  # fmt: skip
    expected = flops.transformer_flops(lengths, text_lengths, width=width)
    adaln = 3 * 2 * 2 * width * 6 * width
    # torch does not count the CPU's fused attention: two products of L x L x width each, of self- and cross-attention.
    attention = 3 * 2 * 2 * width * sum(length * (length + text) for length, text in zip(lengths, text_lengths))
    assert counted.get_total_flops() - adaln + attention == pytest.approx(expected, rel=1e-9)


def test_peak_flops_match_the_longest_device_name(monkeypatch):
    names = {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12,
             "NVIDIA A100-SXM4-80GB": 312e12, "GeForce GT 710": None}  # fmt: skip
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize("width", [96, 192])
def test_the_width_that_packs_are_balanced_by_is_that_of_the_model(width):
    with torch.device("meta"):
        model = build("dit", token_width=4, text_width=8, pooled_width=8, width=width, depth=3, num_heads=3)
    assert flops.cost_model_width(model) == pytest.approx(width, rel=0.2), "cross-attention to an empty text adds 1 / 6"

    class Linear:
        def flops(self, num_tokens, num_text_tokens):
            return 5.0 * sum(num_tokens)

    assert flops.cost_model_width(Linear()) == flops.MAX_COST_MODEL_WIDTH
