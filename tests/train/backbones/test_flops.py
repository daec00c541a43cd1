"""FLOPs against torch's own counter, and the peak of known devices."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.stand_ins.packed_inputs import TRANSFORMERS, make_backbone, make_inputs
from train.backbones import flops
from train.backbones.registry import build
from train.engine.device_peak import peak_flops
from train.layers import attention

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {name: (name, {}) for name in TRANSFORMERS} | {
    "dit, registers": ("dit", {"num_registers": 8}),
    "separable, convolution along time": ("separable", {"time": "conv"}),
    "uvit, no skips": ("uvit", {"skips": False, "num_registers": 8}),
    "mdt, no masking": ("mdt", {"mask_ratio": ()}),
    "diffit_pixels, windows that do not divide": ("diffit_pixels", {"stages": 2, "window": 5}),
}
"""Name of the case -> backbone and settings that change its work."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("grids", [((2, 12, 16), (1, 16, 12), (3, 8, 10)), ((1, 20, 20), (1, 8, 8))])
def test_flops_are_what_torch_counts(variant, grids, monkeypatch):
    """Within 2 %: the rest are embeddings, modulation and the head, which are not counted."""

    def written_out(q, k, v, *bias):
        """Torch does not count the CPU's fused attention."""
        return (q @ k.transpose(2, 3)).softmax(dim=3) @ v

    monkeypatch.setattr(attention, "_attend", written_out)
    name, settings = VARIANTS[variant]
    model = make_backbone(name, **({"width": 192, "num_heads": 2} | settings))
    inputs = make_inputs(grids=grids, text_lengths=(24, 9, 16)[: len(grids)])
    with FlopCounterMode(display=False) as counted:
        model(inputs).sum().backward()
    stated = model.flops(inputs.segments.lengths, inputs.text.segments.lengths, inputs.token_shapes)
    assert stated == pytest.approx(counted.get_total_flops(), rel=0.02)


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
