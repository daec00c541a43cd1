"""MDT: published parameter counts, the reference implementation's outputs, and what masking hides."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import each_alone, grid_positions, make_backbone, make_inputs, samples_of
from train.backbones.interface import PackedInputs
from train.backbones.mdt import SIZES, Mdt
from train.backbones.registry import build
from train.layers.segments import Segments
from train.layers.token_mask import TokenMask
from train.text.encoder import EncodedText

REFERENCE_VARIABLE = "RECAPTION_MDT_REFERENCE"
"""Environment variable with the path of a checkout of github.com/sail-sg/MDT (Apache-2.0)."""
SIDE, CHANNELS, PATCH = 16, 4, 2
PAPER = {"position_table": (SIDE, SIDE), "relative_bias": (1, SIDE, SIDE), "cross_attention": False}
"""Images of 256 px: latents of 32 x 32, patches of 2 x 2."""


def paper_model(device: str, **sizes) -> nn.Module:
    with torch.device(device):
        return build("mdt", token_width=CHANNELS * PATCH**2, text_width=8, pooled_width=8, **(PAPER | sizes))


@pytest.mark.parametrize(
    ("size", "mask_ratio", "published"),
    [
        ("S", (0.3, 0.5), 38_454_872), ("S", (), 35_788_736), ("B", (0.3, 0.5), 150_931_856),
        ("L", (0.3, 0.5), 507_015_776), ("XL", (0.3, 0.5), 742_263_904), ("XL", (), 718_342_176),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_published(size: str, mask_ratio: tuple[float, ...], published: int) -> None:
    model = paper_model("meta", mask_ratio=mask_ratio, **SIZES[size])
    width, num_heads = model.config["width"], model.config["num_heads"]
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    ours_alone = [name for name in parameters if name.startswith("text_embedder.") or "condition_mask" in name]
    shared = sum(count for name, count in parameters.items() if name not in ours_alone)
    labels = 1001 * width  # in place of text: 1000 classes and the null label
    variance = CHANNELS * PATCH**2 * (width + 1)  # predicted there, not here
    never_read = 3 * num_heads * len(model.blocks)  # rows of each table of relative positions
    assert shared + labels + variance + never_read == published


def masked(inputs: PackedInputs, hidden: tuple[list[int], ...]) -> PackedInputs:
    """The inputs with these tokens of each sample masked."""
    parts = [torch.zeros(length, dtype=torch.bool) for length in inputs.segments.lengths]
    for part, index in zip(parts, hidden, strict=True):
        part[index] = True
    return inputs.replace(token_mask=TokenMask.of(torch.cat(parts), inputs.segments))


HIDDEN = ([0, 5, 6, 11], [], [1, 2, 3, 20, 23])


def test_packed_masked_samples_equal_each_alone():
    model = make_backbone("mdt", relative_bias=(2, 2, 3), absolute_positions=True)
    inputs = masked(make_inputs(), HIDDEN)
    packed, alone = model(inputs), each_alone(model, inputs)
    assert (packed - alone).abs().max() <= 1e-5 * alone.abs().max()
    without = model(inputs.replace(token_mask=None))
    changed = ((packed - without).abs().amax(-1) > 1e-4).split(list(inputs.segments.lengths))
    assert [bool(part.all()) for part in changed] == [True, False, True]
    assert torch.equal(samples_of(inputs, [1]).token_mask.masked_index_N, torch.tensor([], dtype=torch.int64))


def test_the_encoder_does_not_see_masked_tokens_and_the_side_block_fills_them_in_alone(monkeypatch):
    """Kept places pass the side block unchanged, to the bit."""
    model = make_backbone("mdt")
    inputs = masked(make_inputs(), HIDDEN)
    is_masked = torch.zeros(inputs.segments.num_tokens, dtype=torch.bool)
    is_masked[inputs.token_mask.masked_index_N] = True
    encoded = []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda *args: encoded.append(encode(*args)) or encoded[-1])
    model(inputs)
    changed = inputs.tokens_LD.clone()
    changed[is_masked] += 1
    model(inputs.replace(tokens_LD=changed))
    assert torch.equal(encoded[0], encoded[1]), "features of visible tokens, and of masked ones inferred from them"
    monkeypatch.setattr(model.side_block, "forward", lambda x_LD, *rest: x_LD + 1)
    model(inputs)
    assert torch.equal(encoded[2][~is_masked], encoded[0][~is_masked])
    assert torch.equal(encoded[2][is_masked], model.mask_token_D.expand(int(is_masked.sum()), -1) + 1)


def test_a_mask_of_nothing_changes_nothing_and_all_weights_have_gradients():
    model, inputs = make_backbone("mdt"), make_inputs()
    with torch.no_grad():
        plain = model(inputs)
    assert torch.equal(model(inputs), plain)
    assert torch.equal(model(masked(inputs, ([], [], []))), plain)
    model(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.mask_token_D.grad.any()


def test_new_models_predict_zero_masked_or_not():
    model = Mdt(token_width=6, text_width=10, pooled_width=7, width=24, depth=4, num_heads=2)
    for inputs in (make_inputs(), masked(make_inputs(), HIDDEN)):
        assert not model(inputs).any()


def test_the_decoder_is_skipped_to_from_the_input_and_the_halves_of_the_encoder_mirror():
    model = make_backbone("mdt", depth=6, decoder_depth=2)
    seen: list[tuple[int, torch.Tensor | None]] = []
    outputs: list[torch.Tensor] = []

    def watch(number: int, args: tuple, out: torch.Tensor) -> None:
        seen.append((number, args[7] if len(args) > 7 else None))
        outputs.append(out)

    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, out, number=number: watch(number, args, out))
    with torch.no_grad():
        u_LD = model.x_embedder(make_inputs())
        model(make_inputs())
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4, 5]
    for number, skip in seen:
        expected = {0: None, 1: None, 2: outputs[1], 3: outputs[0], 4: u_LD, 5: u_LD}[number]
        assert (skip is None) if expected is None else torch.equal(skip, expected), number


def test_settings_that_leave_no_mirrored_encoder_are_refused():
    for depth, decoder_depth in ((5, 2), (4, 4), (4, 0)):
        with pytest.raises(UsageError, match="two halves"):
            make_backbone("mdt", depth=depth, decoder_depth=decoder_depth)
    for mask_ratio in ((0.3,), (0.5, 0.3), (0.3, 1.0)):
        with pytest.raises(UsageError, match="mask_ratio"):
            make_backbone("mdt", mask_ratio=mask_ratio)
    model = make_backbone("mdt", mask_ratio=())
    with pytest.raises(ValueError, match="has no masking"):
        model(masked(make_inputs(), HIDDEN))


# ------------------------------------------------------------------------------------------ the reference implementation


class Labels(nn.Module):
    """In place of the text embedder: the reference's label embeddings."""

    def __init__(self, label_SD: torch.Tensor) -> None:
        super().__init__()
        self.label_SD = label_SD

    def forward(self, inputs: PackedInputs):
        return inputs.text.text_MC, inputs.text.segments, self.label_SD


def reference_model(**settings) -> nn.Module:
    root = os.environ.get(REFERENCE_VARIABLE)
    if not root:
        pytest.skip(f"{REFERENCE_VARIABLE} is not set")
    spec = importlib.util.spec_from_file_location("mdt_reference", Path(root) / "masked_diffusion" / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model = module.MDTv2(input_size=32, patch_size=PATCH, in_channels=CHANNELS, mask_ratio=0.3, **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def mapped_weights(reference: nn.Module) -> dict[str, torch.Tensor]:
    """The reference's weights under our names, without its variance and the rows that are never read."""
    theirs = reference.state_dict()
    ours = {
        "x_embedder.proj.weight": theirs["x_embedder.proj.weight"].flatten(1),
        "x_embedder.proj.bias": theirs["x_embedder.proj.bias"],
        "pos_embed_LD": theirs["pos_embed"][0],
        "decoder_pos_embed_LD": theirs["decoder_pos_embed"][0],
        "mask_token_D": theirs["mask_token"][0, 0],
        "final_adaLN_modulation.1.weight": theirs["final_layer.adaLN_modulation.1.weight"],
        "final_adaLN_modulation.1.bias": theirs["final_layer.adaLN_modulation.1.bias"],
    }
    for name in ("weight", "bias"):
        rows = theirs[f"final_layer.linear.{name}"].unflatten(0, (PATCH, PATCH, 2 * CHANNELS))[:, :, :CHANNELS]
        ours[f"final_linear.{name}"] = rows.movedim(2, 0).flatten(0, 2)  # ours: (channel, row, column)
        for layer in (0, 2):
            ours[f"t_embedder.mlp.{layer}.{name}"] = theirs[f"t_embedder.mlp.{layer}.{name}"]
    renamed = {"attn.qkv": "attention.qkv", "attn.proj": "attention.out", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
    number = 0
    for part in ("en_inblocks", "en_outblocks", "de_blocks", "sideblocks"):
        for index in range(len(getattr(reference, part))):
            prefix = f"{part}.{index}."
            for name, value in theirs.items():
                if name.startswith(prefix) and "relative_position_index" not in name:
                    key = name.removeprefix(prefix)
                    for old, new in renamed.items():
                        key = key.replace(old, new)
                    if "relative_position_bias_table" in key:
                        key, value = "attention.relative_bias.table_NH", value[:-3]
                    ours[f"blocks.{number}.{key}"] = value
            number += 1
    return ours


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_masked", [False, True])
def test_outputs_are_those_of_the_reference_with_its_weights(is_masked: bool) -> None:
    sizes = {"depth": 6, "num_heads": 4}
    reference = reference_model(hidden_size=64, decode_layer=2, **sizes)
    model = paper_model("cpu", width=64, decoder_depth=2, **sizes)
    missing, unexpected = model.load_state_dict(mapped_weights(reference), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"text_embedder", "x_embedder"}, "text and condition mask only"
    images = torch.randn(2, CHANNELS, SIDE * PATCH, SIDE * PATCH)
    timesteps, labels = torch.tensor([17.0, 803.0]), torch.tensor([3, 999])
    num_tokens, num_kept = SIDE**2, 151
    kept = torch.stack([torch.randperm(num_tokens)[:num_kept] for _ in range(2)])
    reference.random_masking = lambda x, ratio: masking_of(x, kept)
    with torch.no_grad():
        expected = reference(images, timesteps, labels, enable_mask=is_masked)[:, :CHANNELS]
        expected = patches(expected)
        model.text_embedder = Labels(reference.y_embedder(labels, False))
        inputs = PackedInputs(
            tokens_LD=patches(images).flatten(0, 1),
            position_L3=grid_positions((1, SIDE, SIDE)).repeat(2, 1),
            segments=Segments.from_lengths([num_tokens] * 2),
            timestep_S=timesteps / 1000,
            text=EncodedText(torch.zeros(2, 8), Segments.from_lengths([1, 1]), torch.zeros(2, 8)),
            token_shapes=((1, SIDE, SIDE),) * 2,
        )
        if is_masked:
            hidden = [sorted(set(range(num_tokens)) - set(index.tolist())) for index in kept]
            inputs = masked(inputs, tuple(hidden))
        together = model(inputs).split(num_tokens)
        for sample in range(2):
            model.text_embedder = Labels(reference.y_embedder(labels[sample : sample + 1], False))
            alone = model(samples_of(inputs, [sample]))
            for found in (together[sample], alone):
                assert (found - expected[sample]).abs().max() <= 1e-5 * expected[sample].abs().max()


def patches(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, L, C x p x p): our order of tokens and of numbers in a token."""
    cut = images.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # B C h p w q
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def masking_of(x: torch.Tensor, kept: torch.Tensor):
    """What the reference's `random_masking` returns, for tokens chosen here."""
    rest = torch.stack([torch.tensor(sorted(set(range(x.shape[1])) - set(row.tolist()))) for row in kept])
    order = torch.cat([kept, rest], dim=1)
    mask = torch.ones(x.shape[:2]).scatter(1, kept, 0.0)
    return x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2])), mask, order.argsort(1), kept
