"""U-ViT: the published sizes and the published implementation; skips, extra tokens, the last convolution."""

from __future__ import annotations

import functools
import importlib
import os
import sys

import pytest
import torch
from torch import nn

from packing.loader.batch import patchify, unpatchify
from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import grid_positions, make_backbone, make_inputs
from train.backbones.interface import PackedInputs
from train.backbones.registry import build
from train.backbones.uvit import SIZES, Uvit
from train.layers.packed_convolution import FrameConv
from train.layers.segments import Segments
from train.text.encoder import EncodedText

REFERENCE = "UVIT_REFERENCE"
"""Environment variable: a folder with a checkout of github.com/baofff/U-ViT, for the tests against it."""
OURS_ALONE = ("x_embedder.condition_mask_embedding_D", "text_embedder.null_text_embedding_MC")
"""Weights that the published models do not have: of conditioning frames, and of the null caption."""

make_uvit = functools.partial(make_backbone, "uvit")


def published(size: str, *, channels: int, patch: int, rows: int, num_text_tokens: int, text_width: int, conv: bool):
    """The published configuration; a class label is a text of one token, one number per class."""
    return {
        "token_width": channels * patch**2, "text_width": text_width, "pooled_width": 1, "conv": conv,
        "patch": (1, patch, patch), "position_table": (num_text_tokens, rows, rows), **SIZES[size],
    }  # fmt: skip


NONE, CLASSES, NULL_CLASS, CLIP = ((0, 1), (1, 1000), (1, 1001), (77, 768))
"""Text tokens and width of text: none, ImageNet's classes, the same with one for no class, tokens of CLIP."""
COUNTS = {
    "S/2 CIFAR-10": ("S", 3, 2, 16, NONE, True, 44_255_328),
    "S/4 CelebA": ("S", 3, 4, 16, NONE, True, 44_292_228),
    "M/4 ImageNet 64": ("M", 3, 4, 16, CLASSES, True, 130_940_292),
    "L/4 ImageNet 64": ("L", 3, 4, 16, CLASSES, True, 286_827_652),
    "L/2 ImageNet 256": ("L", 4, 2, 16, NULL_CLASS, True, 286_763_172),
    "H/2 ImageNet 256": ("H", 4, 2, 16, NULL_CLASS, False, 500_832_016),
    "H/4 ImageNet 512": ("H", 4, 4, 16, NULL_CLASS, False, 500_942_656),
    "S/2 COCO": ("S", 4, 2, 16, CLIP, True, 44_692_644),
    "S/2 deep COCO": ("S-deep", 4, 2, 16, CLIP, True, 58_345_636),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes_have_their_number_of_parameters(name):
    size, channels, patch, rows, (num_text_tokens, text_width), conv, expected = COUNTS[name]
    with torch.device("meta"):
        model = Uvit(
            **published(
                size, channels=channels, patch=patch, rows=rows, num_text_tokens=num_text_tokens,
                text_width=text_width, conv=conv,
            )
        )  # fmt: skip
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    ours = [*OURS_ALONE, *(["text_embedder.proj.bias"] if num_text_tokens == 1 else [])]  # classes have no bias
    assert sum(sizes.values()) - sum(sizes.pop(key, 0) for key in ours) == expected


@pytest.fixture
def reference(monkeypatch):
    """Imports a module of the reference: reference("uvit")."""
    folder = os.environ.get(REFERENCE)
    if not folder:
        pytest.skip(f"needs {REFERENCE}: the folder of a checkout of github.com/baofff/U-ViT")
    pytest.importorskip("einops", reason="the reference imports einops")
    monkeypatch.syspath_prepend(folder)
    yield lambda name: importlib.import_module(f"libs.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "libs"]:
        del sys.modules[name]


def mapped(theirs: dict[str, torch.Tensor], *, channels: int, patch: int, is_class: bool) -> dict[str, torch.Tensor]:
    """Weights of the reference under our names. Its output rows are (row, column, channel), ours (channel, row, column);
    with a class, its table starts (class, time)."""
    depth = 2 * sum(name.startswith("in_blocks.") and name.endswith("norm1.weight") for name in theirs)
    numbers = {f"in_blocks.{number}": number for number in range(depth // 2)} | {"mid_block": depth // 2}
    numbers |= {f"out_blocks.{number}": depth // 2 + 1 + number for number in range(depth // 2)}
    parts = {
        "norm1": "attention_norm", "attn.qkv": "attention.qkv", "attn.proj": "attention.out", "norm2": "mlp_norm",
        "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "skip_linear": "skip_linear",
    }  # fmt: skip
    ours = {}
    for name, value in theirs.items():
        module, _, kind = name.rpartition(".")
        block = next((old for old in numbers if module.startswith(old + ".")), None)
        if block is not None:
            ours[f"blocks.{numbers[block]}.{parts[module.removeprefix(block + '.')]}.{kind}"] = value
    ours["x_embedder.proj.weight"] = theirs["patch_embed.proj.weight"].flatten(1)
    ours["x_embedder.proj.bias"] = theirs["patch_embed.proj.bias"]
    table = theirs["pos_embed"][0]
    ours["pos_embedder.table"] = table[[1, 0, *range(2, len(table))]] if is_class else table
    if is_class:
        ours["text_embedder.proj.weight"] = theirs["label_emb.weight"].T
        ours["text_embedder.proj.bias"] = torch.zeros(table.shape[1])
    else:
        ours |= {f"text_embedder.proj.{kind}": theirs[f"context_embed.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = theirs[f"norm.{kind}"]
        rows = theirs[f"decoder_pred.{kind}"].unflatten(0, (patch, patch, channels))
        ours[f"final_linear.{kind}"] = rows.movedim(2, 0).flatten(0, 2)
        if "final_layer.weight" in theirs:
            ours[f"final_conv.conv.{kind}"] = theirs[f"final_layer.{kind}"]
    return ours


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "text", "text, no conv, no skips"])
def test_outputs_equal_the_published_implementation(reference, kind):
    channels, patch, rows, is_class = 4, 2, 16, kind == "class"
    with_conv = with_skips = "no conv" not in kind
    torch.manual_seed(0)
    sizes = {"img_size": rows * patch, "patch_size": patch, "in_chans": channels, "embed_dim": 96, "depth": 6,
             "num_heads": 4, "conv": with_conv, "skip": with_skips}  # fmt: skip
    if is_class:
        theirs = reference("uvit").UViT(**sizes, num_classes=11)
    else:
        theirs = reference("uvit_t2i").UViT(**sizes, clip_dim=32, num_clip_token=7)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.15)
    num_text_tokens, text_width = (1, 11) if is_class else (7, 32)
    config = published(
        "tiny", channels=channels, patch=patch, rows=rows, num_text_tokens=num_text_tokens, text_width=text_width,
        conv=with_conv,
    )  # fmt: skip
    ours = Uvit(**(config | {"width": 96, "depth": 6, "num_heads": 4, "skips": with_skips}))
    weights = mapped(theirs.state_dict(), channels=channels, patch=patch, is_class=is_class)
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert (sorted(missing), unexpected) == (sorted(OURS_ALONE), [])

    latents = torch.randn(3, channels, rows * patch, rows * patch)
    timestep_S = torch.tensor([3.0, 412.0, 997.0])
    if is_class:
        label_S = torch.tensor([2, 10, 0])
        text, expected = nn.functional.one_hot(label_S, 11).float()[:, None], theirs(latents, timestep_S, label_S)
    else:
        text = torch.randn(3, num_text_tokens, text_width)
        expected = theirs(latents, timestep_S, text)
    assert expected.abs().mean() > 0.1, "nothing to compare"

    def predicted(samples: list[int]) -> torch.Tensor:
        tokens = [patchify(latents[s][:, None], (1, patch, patch)) for s in samples]
        inputs = PackedInputs(
            tokens_LD=torch.cat(tokens),
            position_L3=grid_positions((1, rows, rows)).repeat(len(samples), 1),
            segments=Segments.from_lengths([rows * rows] * len(samples)),
            timestep_S=timestep_S[samples] / 1000,
            text=EncodedText(
                text[samples].flatten(0, 1), Segments.from_lengths([num_text_tokens] * len(samples)),
                torch.zeros(len(samples), 1),
            ),
            token_shapes=((1, rows, rows),) * len(samples),
        )  # fmt: skip
        parts = ours(inputs).split(rows * rows)
        return torch.stack([unpatchify(part, (1, rows, rows), (1, patch, patch))[:, 0] for part in parts])

    largest = expected.abs().max()
    for samples in ([0], [0, 1, 2], [2, 0]):
        error = (predicted(samples) - expected[samples]).abs().max() / largest
        assert error <= 1e-5, samples


def test_a_skip_goes_from_each_block_to_its_mirror_image():
    """Swapping two skips changes the output, so the order of the stack is part of the model."""
    model, inputs = make_uvit(), make_inputs()
    before = model(inputs)
    seen: dict[int, tuple] = {}
    hooks = [
        block.register_forward_hook(lambda block, args, out, number=number: seen.update({number: (args, out)}))
        for number, block in enumerate(model.blocks)
    ]
    assert torch.equal(model(inputs), before)
    for hook in hooks:
        hook.remove()
    for number, mirror in ((0, 4), (1, 3)):
        assert torch.equal(seen[mirror][0][3], seen[number][1])
    assert len(seen[2][0]) == 3, "none into the middle"
    for mirror, number in ((3, 0), (4, 1)):
        skip = seen[number][1]
        model.blocks[mirror].register_forward_pre_hook(lambda block, args, skip=skip: (*args[:3], skip))
    assert (model(inputs) - before).abs().max() > 1e-3


def test_time_registers_and_text_lengthen_each_sample_by_its_own_number():
    model, inputs = make_uvit(num_registers=2), make_inputs()
    inputs = inputs.replace(drop_text_S=[False, False, True])
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[2].lengths))
    assert model(inputs).shape == inputs.tokens_LD.shape
    text_lengths = (3, 1, 1)  # the last caption is dropped: the null caption has one token
    expected = tuple(1 + 2 + text + tokens for text, tokens in zip(text_lengths, inputs.segments.lengths))
    assert seen == [expected]
    lengths = inputs.segments.lengths
    assert model.flops(lengths, text_lengths) == pytest.approx(
        make_uvit().flops([tokens + 2 for tokens in lengths], text_lengths)
    )


def test_the_order_of_the_text_matters_and_pooled_text_does_not():
    model, inputs = make_uvit(), make_inputs()
    text = inputs.text
    backwards = EncodedText(text.text_MC[[2, 1, 0, *range(3, 8)]], text.segments, text.pooled_SC)
    changed = (model(inputs.replace(text=backwards)) - model(inputs)).abs().amax(-1) > 1e-4
    assert changed.tolist() == (inputs.segments.segment_ids_L == 0).tolist()
    other = EncodedText(text.text_MC, text.segments, text.pooled_SC + 1)
    assert torch.equal(model(inputs.replace(text=other)), model(inputs))


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 3, 1)])
def test_the_last_convolution_equals_conv2d_over_each_frame(patch):
    torch.manual_seed(0)
    convolution, shapes = FrameConv(3, patch), [(2, 3, 4), (1, 1, 1), (1, 5, 2)]
    latents = [torch.randn(3, *(n * p for n, p in zip(shape, patch))) for shape in shapes]
    tokens_LD = torch.cat([patchify(latent, patch) for latent in latents])
    segments = Segments.from_lengths([shape[0] * shape[1] * shape[2] for shape in shapes])
    position_L3 = torch.cat([grid_positions(shape) for shape in shapes])
    parts = convolution(tokens_LD, segments, position_L3).split(segments.lengths)
    for part, shape, latent in zip(parts, shapes, latents):
        frames = nn.functional.conv2d(latent.transpose(0, 1), convolution.conv.weight, convolution.conv.bias, padding=1)
        torch.testing.assert_close(unpatchify(part, shape, patch), frames.transpose(0, 1))


def test_invalid_settings_and_sizes_are_one_sentence():
    sizes = {"token_width": 6, "text_width": 10, "pooled_width": 7, "width": 24, "num_heads": 2}
    for depth in (3, 0):
        with pytest.raises(UsageError, match=f"two halves of equal depth: depth = {depth} must be even"):
            build("uvit", **sizes, depth=depth)
    with pytest.raises(UsageError, match="num_registers = -1 is negative"):
        build("uvit", **sizes, depth=2, num_registers=-1)
    model, inputs = build("uvit", **sizes, depth=2, position_table=(4, 2, 3)), make_inputs()
    with pytest.raises(
        UsageError, match=r"table of positions for \(1, 2, 3\) tokens and 4 text tokens, not for \(2, 3"
    ):
        model(inputs)
    with pytest.raises(UsageError, match="not for longer texts: leave position_table empty"):
        model(make_inputs(grids=[(1, 2, 3)], text_lengths=[5]))
    assert model(make_inputs(grids=[(1, 2, 3)] * 2)).isfinite().all()
    without_text = build("uvit", **sizes, depth=2, position_table=(0, 2, 3))
    assert without_text(make_inputs(grids=[(1, 2, 3)] * 2)).isfinite().all()
