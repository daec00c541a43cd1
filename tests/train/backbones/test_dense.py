"""Temporal layers over a U-Net of diffusers: equal to it at first, published sizes, sizes that are refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import HALVING, TEXT_WIDTH, TOKEN_WIDTH, UNET, make_backbone, make_inputs, samples_of
from train.backbones.pretrained.dense import DenseBackbone
from train.backbones.pretrained.unet import build_unet, read_config, read_weights
from train.checkpoint.weights import load_weights

pytest.importorskip("diffusers")

SD15 = {"cross_attention_dim": 768}
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
GRIDS = ((3, 4, 2), (1, 2, 4), (3, 4, 2))


def dense_inputs():
    return make_inputs(grids=GRIDS, text_lengths=[3, 2, 3])


def of_unet(model: DenseBackbone, inputs) -> torch.Tensor:
    """The U-Net alone on every frame, samples of one shape in one call; made without the code under test."""
    parts = inputs.tokens_LD.split(list(inputs.segments.lengths))
    texts = inputs.text.text_MC.split(list(inputs.text.segments.lengths))
    outputs = [torch.empty(0)] * len(parts)
    for samples in ([0, 2], [1]):
        frames, rows, columns = GRIDS[samples[0]]
        images = torch.stack([parts[s] for s in samples]).reshape(-1, rows, columns, TOKEN_WIDTH).permute(0, 3, 1, 2)
        timestep = torch.stack([inputs.timestep_S[s] for s in samples for _ in range(frames)]) * 1000 - 1
        text = torch.stack([texts[s] for s in samples for _ in range(frames)])
        found = model.base(images, timestep, text).sample.permute(0, 2, 3, 1).reshape(len(samples), -1, TOKEN_WIDTH)
        for number, sample in enumerate(samples):
            outputs[sample] = found[number]
    return torch.cat(outputs)


def test_new_layers_give_the_unet_for_each_frame_to_the_bit():
    filled, inputs = make_backbone("temporal-unet", unet=HALVING), dense_inputs()
    model = DenseBackbone(**filled.config)
    model.base.load_state_dict(filled.base.state_dict())
    reference = build_unet(HALVING)
    load_weights(reference, filled.base.state_dict(), "names as published")
    hooked, model.base = model.base, reference
    expected = of_unet(model, inputs)
    model.base = hooked
    assert expected.abs().mean() > 0.01
    assert torch.equal(model(inputs), expected)
    assert not torch.equal(filled(inputs), expected), "trained layers must change it"
    for mix in filled.temporal.values():
        nn.init.constant_(mix.mix_factor, math.inf)
    assert torch.equal(filled(inputs), expected), "alpha = 1 removes them"


def test_an_image_goes_the_way_of_the_unet_and_only_temporal_layers_have_gradients():
    model, image = make_backbone("temporal-unet", unet=HALVING), samples_of(dense_inputs(), [1])
    before = model(image)
    for mix in model.temporal.values():
        nn.init.normal_(mix.out.weight)
    assert torch.equal(model(image), before)
    model.base.requires_grad_(False)
    model(dense_inputs()).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    assert all(mix.out.weight.grad.any() and mix.mix_factor.grad.any() for mix in model.temporal.values())


def test_sizes_and_networks_that_do_not_fit_are_refused():
    model = make_backbone("temporal-unet", unet=HALVING)
    with pytest.raises(UsageError, match="rows and columns divide by 2, not 3x2"):
        model(make_inputs())
    with pytest.raises(UsageError, match="no token dropping: a U-Net convolves whole frames"):
        model(make_inputs(grids=((2, 2, 2),), kept=[[0, 1, 5]]))
    widths = {"token_width": TOKEN_WIDTH, "text_width": TEXT_WIDTH, "pooled_width": 7, "unet": UNET}
    for changes, message in (
        ({"token_width": 4}, "takes 6 and gives 6 latent channels, tokens have 4 numbers"),
        ({"text_width": 5}, "texts of width 10, the text encoder's are 5 wide"),
        ({"unet": UNET | {"num_class_embeds": 3}}, "num_class_embeds takes more than a text"),
        ({"unet": UNET | {"up_block_types": ["NoBlock"]}}, "makes no network"),
    ):
        with pytest.raises(UsageError, match=message):
            DenseBackbone(**(widths | changes))


def test_a_folder_of_diffusers_is_read_with_its_published_names(tmp_path):
    unet = build_unet(UNET)
    unet.save_pretrained(tmp_path / "unet")
    for spec in (f"diffusers:{tmp_path}#unet", f"diffusers:{tmp_path / 'unet'}"):
        weights = read_weights(spec)
        assert weights.keys() == unet.state_dict().keys()
        assert all(torch.equal(value, unet.state_dict()[name]) for name, value in weights.items())
    again = build_unet(read_config(f"diffusers:{tmp_path}#unet"))
    load_weights(again, weights, "here")
    with pytest.raises(UsageError, match="append #unet"):
        read_config(f"diffusers:{tmp_path}")


@pytest.mark.parametrize(("config", "num_parameters"), [(SD15, 859_520_964), (SD21, 865_910_724)], ids=["1.5", "2.1"])
def test_published_sizes_have_38_places_for_temporal_layers(config, num_parameters):
    """Stable Diffusion's counts: 22 residual and 16 attention blocks."""
    with torch.device("meta"):
        model = DenseBackbone(
            unet=config, token_width=4, text_width=config["cross_attention_dim"], pooled_width=768, layers=("conv",)
        )
    assert sum(parameter.numel() for parameter in model.base.parameters()) == num_parameters
    names = list(model.temporal)
    assert (len(names), sum("resnets" in name for name in names), sum("attentions" in name for name in names)) == (
        38,
        22,
        16,
    )
    assert model.side_multiple == 8
