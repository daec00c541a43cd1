"""What holds for every backbone: packed equals alone, gradients too, and each of its promises to training and sampling."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import nn

from tests.stand_ins.packed_inputs import (
    GRIDS,
    SIZES,
    TOKEN_WIDTH,
    each_alone,
    gradients,
    make_backbone,
    make_inputs,
    samples_of,
)
from train.backbones.registry import BACKBONES, build
from train.layers import attention
from train.layers.segments import Segments
from train.parallel import fsdp

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "dit": ("dit", {}),
    "dit, registers and positions": ("dit", {"num_registers": 2, "absolute_positions": True}),
    "dit, hint and scalars": ("dit", {"hint_width": 4, "scalars": ("level", "fps")}),
    "temporal": ("temporal", {}),
    "temporal, attention and registers": (
        "temporal",
        {"layers": ("attention",), "num_registers": 2, "absolute_positions": True},
    ),
    "temporal, convolution, hint and scalars": (
        "temporal",
        {"layers": ("conv",), "hint_width": 4, "scalars": ("level", "fps")},
    ),
    "temporal-unet": ("temporal-unet", {}),
    "temporal-unet, hint and scalars": ("temporal-unet", {"hint_width": 4, "scalars": ("level", "fps")}),
    "mdt": ("mdt", {}),
    "mdt, positions and bias": ("mdt", {"absolute_positions": True, "relative_bias": (2, 2, 3)}),
    "mdt, no masking, hint and scalars": ("mdt", {"mask_ratio": (), "hint_width": 4, "scalars": ("level", "fps")}),
    "uvit": ("uvit", {}),
    "uvit, registers and convolution": ("uvit", {"num_registers": 2, "conv": True, "patch": (1, 2, 1)}),
    "uvit, hint and scalars, no skips": ("uvit", {"hint_width": 4, "scalars": ("level", "fps"), "skips": False}),
    "separable": ("separable", {}),
    "separable, positions, hint and scalars": (
        "separable",
        {"absolute_positions": True, "hint_width": 4, "scalars": ("level", "fps")},
    ),
    "separable, convolution along time": ("separable", {"time": "conv"}),
    "diffit": ("diffit", {}),
    "diffit, positions and bias": ("diffit", {"absolute_positions": True, "relative_bias": (2, 2, 3)}),
    "diffit, time in the bias, hint and scalars": (
        "diffit",
        {"time_in": "bias", "relative_bias": (2, 2, 3), "hint_width": 4, "scalars": ("level", "fps")},
    ),
    "diffit_pixels": ("diffit_pixels", {}),
    "diffit_pixels, two cells, hint and scalars": (
        "diffit_pixels",
        {"depth": 2, "stages": 2, "window": 3, "hint_width": 4, "scalars": ("level", "fps")},
    ),
    "diffit_pixels, positions and bias": (
        "diffit_pixels",
        {"absolute_positions": True, "relative_bias": (1, 2, 2), "stages": 2},
    ),
}
"""Name of the case -> backbone and settings. Each backbone is in at least one."""

pytestmark = pytest.mark.parametrize("variant", VARIANTS)
DROPPED = [False, True, False]


def model_and_inputs(variant: str, **changes):
    """The backbone of the variant, and inputs that have all that it takes; the caption of the second sample is dropped."""
    name, settings = VARIANTS[variant]
    model, inputs = make_backbone(name, **settings), make_inputs(**changes)
    num_samples = len(inputs.segments)
    inputs = inputs.replace(drop_text_S=[s % 3 == 1 for s in range(num_samples)])
    if width := settings.get("hint_width"):
        inputs = inputs.replace(hint_LD=torch.randn(inputs.segments.num_tokens, width))
    scalars = {name: torch.linspace(0.2, 0.7, num_samples) for name in settings.get("scalars", ())}
    return model, inputs.replace(scalars=scalars)


def condition_mask(inputs) -> torch.Tensor:
    """The first frame of every sample."""
    return inputs.position_L3[:, 0] == 0


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest value."""
    assert expected.abs().mean() > 0.01, "nothing to compare"
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_gradients_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To 2e-5 of the largest value of each; those that are small beside the others, of softmaxes over a token or two for
    example, carry the rounding of the others."""
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        allowed = 2e-5 * expected[name].abs().max() + 1e-7 * largest
        assert (gradient - expected[name]).abs().max() <= allowed, name


def test_every_backbone_has_a_variant(variant):
    assert {name for name, _ in VARIANTS.values()} == set(BACKBONES) == set(SIZES)


def test_packed_equals_each_sample_alone(variant):
    model, inputs = model_and_inputs(variant)
    assert_close(model(inputs), each_alone(model, inputs))


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_packed_gradients_equal_the_sum_of_each_samples_own(variant, is_checkpointed):
    model, inputs = model_and_inputs(variant)
    alone = gradients(model, each_alone(model, inputs))
    if is_checkpointed:
        fsdp.apply_activation_checkpointing(model, name="dit")
    packed = gradients(model, model(inputs))
    assert packed.keys() == alone.keys() == dict(model.named_parameters()).keys(), "DDP waits for all of them"
    assert_gradients_close(packed, alone)


def test_any_arrangement_over_packs_has_the_same_gradient(variant):
    model, inputs = model_and_inputs(variant)
    weights = torch.randn(inputs.tokens_LD.shape, generator=torch.Generator().manual_seed(5))
    parts = weights.split(list(inputs.segments.lengths))
    found = []
    for packs in ([[0, 1, 2]], [[2, 0], [1]], [[1, 2], [0]]):
        model.zero_grad()
        for order in packs:
            (model(samples_of(inputs, order)) * torch.cat([parts[s] for s in order])).sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for other in found[1:]:
        assert_gradients_close(other, found[0])


def test_attention_that_leaks_between_samples_is_detected(variant, monkeypatch):
    """The comparisons above can fail: with attention over the whole pack they do by far."""
    model, inputs = model_and_inputs(variant)
    alone = each_alone(model, inputs)

    def leaking(q, k, v, segments_q, segments_k, **bias):
        whole_q, whole_k = (Segments.from_lengths([segments.num_tokens]) for segments in (segments_q, segments_k))
        return original(q, k, v, whole_q, whole_k)

    original = attention._loop
    monkeypatch.setattr(attention, "_loop", leaking)
    assert (model(inputs) - alone).abs().max() > 1e-3 * alone.abs().max()


def test_each_layer_is_called_once_per_pack(variant):
    """A loop over samples would pass every comparison above, and take a pack's length in calls."""
    model, _ = model_and_inputs(variant)
    counts = []
    for grids in (GRIDS, GRIDS * 4):
        calls: collections.Counter[str] = collections.Counter()
        hooks = [
            module.register_forward_hook(lambda *_, name=name, calls=calls: calls.update([name]))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d | nn.Conv3d | nn.GroupNorm)
        ]
        model(model_and_inputs(variant, grids=grids)[1])
        for hook in hooks:
            hook.remove()
        counts.append(calls)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("grids", [((1, 1, 1),), ((7, 1, 3), (1, 6, 1)), ((2, 5, 4), (1, 8, 8), (3, 3, 3), (1, 2, 2))])
def test_any_size_and_length_runs(variant, grids):
    model, inputs = model_and_inputs(variant, grids=grids)
    if reason := model.unsupported.get("sizes"):
        pytest.skip(reason)
    prediction_LD = model(inputs)
    assert prediction_LD.shape == inputs.tokens_LD.shape
    assert prediction_LD.dtype == torch.float32
    assert_close(prediction_LD, each_alone(model, inputs))


def test_dropped_tokens_are_as_if_they_had_never_been(variant):
    model, inputs = model_and_inputs(variant, kept=([0, 2, 3, 7, 11], [1, 4], [*range(5, 20)]))
    if reason := model.unsupported.get("token dropping"):
        pytest.skip(reason)
    assert_close(model(inputs), each_alone(model, inputs))
    gradients(model, model(inputs))


def test_conditioning_frames_are_seen_and_told_apart(variant):
    model, inputs = model_and_inputs(variant)
    if reason := model.unsupported.get("conditioning frames"):
        pytest.skip(reason)
    marked = inputs.replace(condition_mask_L=condition_mask(inputs))
    plain = model(inputs)
    assert (model(marked) - plain).abs().max() > 1e-3
    assert_close(model(marked), each_alone(model, marked))
    unmarked = inputs.replace(condition_mask_L=torch.zeros_like(condition_mask(inputs)))
    torch.testing.assert_close(model(unmarked), plain, rtol=0, atol=0)


def test_noise_level_and_text_act_on_their_own_sample_only(variant):
    model, inputs = model_and_inputs(variant)
    before = model(inputs)
    of_first_L = inputs.segments.segment_ids_L == 0
    later = model(inputs.replace(timestep_S=torch.tensor([0.4, *inputs.timestep_S[1:]])))
    assert ((later - before).abs().amax(-1) > 1e-6).tolist() == of_first_L.tolist()
    without_text = model(inputs.replace(drop_text_S=[True, True, False]))
    assert ((without_text - before).abs().amax(-1) > 1e-6).tolist() == of_first_L.tolist()


def test_guidance_takes_both_copies_in_one_pack(variant):
    model, inputs = model_and_inputs(variant)
    both = model(inputs.repeated(2, [False] * 3 + [True] * 3))
    expected = torch.cat([model(inputs.replace(drop_text_S=[is_dropped] * 3)) for is_dropped in (False, True)])
    assert_close(both, expected)


def test_config_rebuilds_the_same_model(variant):
    model, inputs = model_and_inputs(variant)
    again = build(VARIANTS[variant][0], **model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(inputs), model(inputs))


def test_autocast_keeps_the_output_float32_and_near_the_exact_one(variant):
    model, inputs = model_and_inputs(variant)
    exact = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(inputs)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    gradients(model, rounded)


def test_flops_and_activations_grow_with_the_pack(variant):
    model, inputs = model_and_inputs(variant)
    lengths, text_lengths = inputs.segments.lengths, inputs.text.segments.lengths
    assert model.flops(lengths * 2, text_lengths * 2) == pytest.approx(2 * model.flops(lengths, text_lengths))
    saved = {
        checkpointed: model.activation_bytes(lengths, text_lengths, precision="bf16", checkpointed=checkpointed)
        for checkpointed in (False, True)
    }
    assert 0 < saved[True] < saved[False]


def test_a_new_model_with_zero_hint_weights_is_the_base_to_the_bit(variant):
    name, settings = VARIANTS[variant]
    base, inputs = make_backbone(name, **(settings | {"hint_width": 0, "scalars": ()})), make_inputs()
    hinted = build(name, **(base.config | {"hint_width": TOKEN_WIDTH, "scalars": ("level",)}))
    missing = hinted.load_state_dict(base.state_dict(), strict=False).missing_keys
    assert missing, "the hint has weights of its own"
    with_hint = inputs.replace(hint_LD=inputs.tokens_LD.flip(0), scalars={"level": inputs.timestep_S})
    assert torch.equal(hinted(with_hint), base(inputs))
