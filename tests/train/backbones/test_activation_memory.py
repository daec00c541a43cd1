"""Memory estimate of training: saved activations measured again, parameters counted on the model."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import SIZES, TRANSFORMERS, grid_positions
from train.backbones.activation_memory import training_memory
from train.backbones.dit import SIZES as DIT_SIZES
from train.backbones.dit import Dit
from train.backbones.interface import PackedInputs
from train.backbones.registry import build
from train.layers import attention
from train.layers.layouts import Layouts
from train.layers.qk_norm import QKNorm
from train.layers.segments import Segments
from train.layers.text_condition import TextSelection
from train.parallel.device_memory import AUTOCAST_BYTES
from train.text.encoder import EncodedText


class FlashAttention(torch.autograd.Function):
    """What flash and flex attention keep for their backward: queries, keys, values, output, a number per row of scores."""

    @staticmethod
    def forward(ctx, q_LHD, k_MHD, v_MHD):
        out_LHD = torch.empty_like(q_LHD, memory_format=torch.contiguous_format)
        log_sum_exp_HL = q_LHD.new_empty(q_LHD.shape[1], q_LHD.shape[0], dtype=torch.float32)
        ctx.save_for_backward(q_LHD, k_MHD, v_MHD, out_LHD, log_sum_exp_HL)
        return out_LHD


@pytest.fixture
def fake_cuda(monkeypatch):
    """CUDA without a GPU: tensors without values, with the device's own autocast and paths."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for name in ("_varlen", "_flex"):
        monkeypatch.setattr(attention, name, lambda q, k, v, *_, **__: FlashAttention.apply(q, k, v))


WIDTH, NUM_HEADS = 192, 3
WIDTHS = {"token_width": 8, "text_width": 32, "pooled_width": 32, "width": WIDTH, "num_heads": NUM_HEADS}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {name: (name, {}) for name in TRANSFORMERS} | {
    "separable, convolution along time": ("separable", {"time": "conv"}),
    "uvit, no skips": ("uvit", {"skips": False}),
    "mdt, bias": ("mdt", {"relative_bias": (1, 8, 8)}),
    "mdt, no masking": ("mdt", {"mask_ratio": ()}),
    "diffit, bias": ("diffit", {"relative_bias": (1, 8, 8)}),
    "diffit_pixels, one stage": ("diffit_pixels", {"stages": 1}),
    "diffit_pixels": ("diffit_pixels", {"stages": 3, "window": 4}),
}
"""Name of the case -> backbone and settings that change what it saves."""
MANY_FRAMES = 256
DEPTHS = {"diffit_pixels": (1, 2)}
"""Depths that are compared; 4 and 6 for the others."""


def saved_bytes(variant: str, depth: int, num_frames: int, precision: str) -> int:
    """Saved for the backward by two videos of so many frames of 8 x 8 tokens, one of them three times as long."""
    name, settings = VARIANTS[variant]
    positions = [grid_positions((n, 8, 8)) for n in (num_frames, 3 * num_frames)]
    segments = Segments.from_lengths([len(one) for one in positions])
    text_segments = Segments.from_lengths([3, 5])
    text = TextSelection.of(None, text_segments)
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = build(name, **(SIZES[name] | WIDTHS | {"depth": depth} | settings))
        with unset_fake_temporarily(), torch.device("cpu"):
            layouts = Layouts(segments, torch.cat(positions)).built(model.layout_keys)
        position_L3 = torch.cat(positions).to("cuda")
        segments, text_segments, text = (on_fake_device(one) for one in (segments, text_segments, text))
        built = layouts._layouts
        layouts = Layouts(segments, position_L3)
        layouts._layouts = {key: on_fake_device(layout) for key, layout in built.items()}
        with (
            torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
            torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"),
        ):
            inputs = PackedInputs(
                tokens_LD=torch.zeros(segments.num_tokens, 8), position_L3=position_L3, segments=segments,
                timestep_S=torch.zeros(2), drop_text_S=text, layouts=layouts,
                text=EncodedText(torch.zeros(8, 32), text_segments, torch.zeros(2, 32)),
            )  # fmt: skip
            model(inputs)
            weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
            return sum(one.untyped_storage().nbytes() for key, one in saved.items() if key not in weights)


def on_fake_device(one):
    """The record with its tensors on the fake device; real ones cannot be pinned here."""
    if isinstance(one, torch.Tensor):
        return one.to("cuda")
    if isinstance(one, tuple):
        return tuple(on_fake_device(value) for value in one)
    if not dataclasses.is_dataclass(one):
        return one
    values = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    return dataclasses.replace(one, **{name: on_fake_device(value) for name, value in values.items()})


def stated_bytes(variant: str, depth: int, num_frames: int, precision: str) -> int:
    name, settings = VARIANTS[variant]
    with torch.device("meta"):
        model = build(name, **(SIZES[name] | WIDTHS | {"depth": depth} | settings))
    lengths = [64 * num_frames, 3 * 64 * num_frames]
    return model.activation_bytes(lengths, [3, 5], precision=precision, checkpointed=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_bytes_on_a_gpu_are_as_stated(fake_cuda, variant: str, precision: str) -> None:
    """Of more blocks, over so many tokens that what autocast keeps of the weights is nothing beside them."""
    few, more = DEPTHS.get(VARIANTS[variant][0], (4, 6))
    measured, stated = (
        count(variant, more, MANY_FRAMES, precision) - count(variant, few, MANY_FRAMES, precision)
        for count in (saved_bytes, stated_bytes)
    )
    per_block = measured / (4 * 64 * MANY_FRAMES) / WIDTH / (more - few)
    assert stated == pytest.approx(measured, rel=0.015), f"{per_block} per token, width and block"


def test_autocast_keeps_a_copy_of_each_weight(fake_cuda) -> None:
    block = Dit(**WIDTHS, depth=1).blocks[0]
    per_block = [saved_bytes("dit", 2, n, "bf16") - saved_bytes("dit", 1, n, "bf16") for n in (1, 2)]
    copies = 2 * per_block[0] - per_block[1]
    assert copies == pytest.approx(AUTOCAST_BYTES * sum(p.numel() for p in block.parameters()), rel=0.03)


def test_queries_and_keys_are_normed_in_their_own_type_under_autocast(fake_cuda) -> None:
    with FakeTensorMode(), torch.device("cuda"), torch.autocast("cuda", torch.bfloat16):
        heads_LHD = torch.zeros(4, 3, 64, dtype=torch.bfloat16)
        assert QKNorm(64, eps=1e-6)(heads_LHD).dtype == torch.bfloat16
        assert torch.nn.functional.rms_norm(heads_LHD, (64,)).dtype == torch.float32, "what autocast would do"


def test_parameters_are_those_of_the_model() -> None:
    model = Dit(token_width=64, text_width=96, pooled_width=96, **DIT_SIZES["S"])
    memory = training_memory(width=384, depth=12, capacity=1000, num_ranks=8, text_width=96)
    assert memory.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert memory.sharded_state_bytes * 8 >= memory.model_state_bytes == 20 * memory.num_parameters
    assert training_memory(width=384, depth=12, capacity=2000).activations_bytes == 2 * memory.activations_bytes
    assert memory.weight_copies_bytes == 2 * memory.num_parameters
    assert training_memory(width=384, depth=12, capacity=9, precision="fp32").weight_copies_bytes == 0
    with pytest.raises(UsageError, match="multiple of 64"):
        training_memory(width=100, depth=2, capacity=10)
