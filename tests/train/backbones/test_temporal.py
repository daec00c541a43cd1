"""Temporal layers over a frozen image transformer: at first, for images and at alpha = 1 the image model, to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import GRIDS, TEXT_LENGTHS, grid_positions, make_backbone, make_inputs, samples_of
from train.backbones.interface import PackedInputs
from train.backbones.registry import build
from train.backbones.temporal import TemporalDit
from train.layers.segments import Segments
from train.text.encoder import EncodedText

VARIANTS = {
    "both": {},
    "attention": {"layers": ("attention",), "num_registers": 2},
    "convolution": {"layers": ("conv",), "absolute_positions": True},
}
DROPPED = [False, True, False]

pytestmark = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def new_model(changes) -> TemporalDit:
    """As at the start of a training: an image model with nothing left at zero, under new temporal layers."""
    filled = make_backbone("temporal", **changes)
    model = build("temporal", **filled.config)
    model.base.load_state_dict(filled.base.state_dict())
    return model


def frames_as_images(inputs: PackedInputs) -> PackedInputs:
    """Every frame as an image of its own, with the text and noise level of its clip; made without the code under test."""
    text = inputs.text.text_MC.split(list(inputs.text.segments.lengths))
    frames = [
        (sample, rows * columns, (1, rows, columns))
        for sample, (n, rows, columns) in enumerate(GRIDS)
        for _ in range(n)
    ]
    of_frames = [sample for sample, _, _ in frames]
    return PackedInputs(
        tokens_LD=inputs.tokens_LD,
        position_L3=torch.cat([grid_positions(grid) for _, _, grid in frames]),
        segments=Segments.from_lengths([length for _, length, _ in frames]),
        timestep_S=inputs.timestep_S[of_frames],
        text=EncodedText(
            torch.cat([text[sample] for sample in of_frames]),
            Segments.from_lengths([TEXT_LENGTHS[sample] for sample in of_frames]),
            inputs.text.pooled_SC[of_frames],
        ),
        drop_text_S=[DROPPED[sample] for sample in of_frames],
    )


def test_new_layers_give_the_image_model_for_each_frame_to_the_bit(changes):
    model, inputs = new_model(changes), make_inputs().replace(drop_text_S=DROPPED)
    expected = model.base(frames_as_images(inputs))
    assert expected.abs().mean() > 0.01
    assert torch.equal(model(inputs), expected)
    trained = make_backbone("temporal", **changes)
    assert not torch.equal(trained(inputs), trained.base(frames_as_images(inputs))), "trained layers must change it"


def test_alpha_one_gives_the_image_model_again_to_the_bit(changes):
    model, inputs = make_backbone("temporal", **changes), make_inputs().replace(drop_text_S=DROPPED)
    for mix in model.temporal:
        nn.init.constant_(mix.mix_factor, math.inf)
    assert torch.equal(model(inputs), model.base(frames_as_images(inputs)))


def test_an_image_goes_the_way_of_the_image_model_to_the_bit(changes):
    model = make_backbone("temporal", **changes)
    image = samples_of(make_inputs().replace(drop_text_S=DROPPED), [1])
    assert image.token_shapes[0][0] == 1
    marked = image.replace(condition_mask_L=torch.ones(image.segments.num_tokens, dtype=torch.bool))
    for inputs in (image, marked):
        assert torch.equal(model(inputs), model.base(image))


def test_only_temporal_layers_are_trained_and_all_of_them_from_the_second_step(changes):
    model, inputs = new_model(changes), make_inputs()
    inputs = inputs.replace(condition_mask_L=inputs.position_L3[:, 0] == 0)
    before = {name: value.clone() for name, value in model.base.state_dict().items()}
    model.base.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    has_gradient = []
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        has_gradient.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()})
        optimizer.step()
    assert {name for name in has_gradient[0] if ".out." in name} == {
        f"temporal.{number}.out.{kind}" for number in range(2) for kind in ("weight", "bias")
    }, "a gradient from the first step on"
    temporal = {name for name, _ in model.named_parameters() if name.startswith("temporal")}
    unused = {name for name in temporal if "null" in name or ".k_norm" in name}
    assert temporal - unused <= has_gradient[1] <= temporal
    assert all(torch.equal(value, before[name]) for name, value in model.base.state_dict().items())


def test_the_image_model_sees_conditioning_frames_noised_and_the_temporal_layers_clean(changes):
    model, noised = make_backbone("temporal", **changes), make_inputs()
    mask_L = noised.position_L3[:, 0] == 0
    clean_LD = torch.where(mask_L[:, None], noised.tokens_LD.flip(0), noised.tokens_LD)
    inputs = noised.replace(tokens_LD=clean_LD, noised_LD=noised.tokens_LD, condition_mask_L=mask_L)
    for mix in model.temporal:
        nn.init.zeros_(mix.context_embedder.weight)
    assert torch.equal(model(inputs), model(noised)), "the clean tokens enter through the context alone"
    model = make_backbone("temporal", **changes)
    other = inputs.replace(tokens_LD=torch.where(mask_L[:, None], clean_LD + 1, clean_LD))
    assert (model(other) - model(inputs)).abs().max() > 1e-3
    nothing = inputs.replace(condition_mask_L=torch.zeros_like(mask_L))
    assert torch.equal(model(nothing), model(noised)), "no conditioning frame is no conditioning"


def test_temporal_layers_tell_the_order_of_frames(changes):
    """Attention sees positions, the convolution its neighbours: frames played backward are another clip."""
    model, clip = make_backbone("temporal", **changes), samples_of(make_inputs(grids=((4, 2, 2),) * 3), [0])
    backward = clip.replace(tokens_LD=clip.tokens_LD.unflatten(0, (4, 4)).flip(0).flatten(0, 1))
    again_LD = model(backward).unflatten(0, (4, 4)).flip(0).flatten(0, 1)
    assert (again_LD - model(clip)).abs().max() > 1e-3


def test_unknown_layers_are_refused(changes):
    for layers in ((), ("attention", "attention"), ("recurrent",)):
        with pytest.raises(UsageError, match="choose attention or conv, or both"):
            make_backbone("temporal", **(changes | {"layers": layers}))
