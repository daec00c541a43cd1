"""The packed DiT: samples of a pack are computed as each alone, and the output starts as exactly zero."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn

from recaption.errors import UsageError
from tests.stand_ins.packed_inputs import TEXT_LENGTHS, each_alone, gradients, grid_positions, make_backbone
from tests.stand_ins.packed_inputs import make_inputs as make_pack
from train.backbones.dit import SIZES
from train.backbones.registry import build
from train.layers.adaln import NORM_EPS, gated_residual, modulated_layer_norm
from train.layers.attention import packed_attention
from train.layers.qk_norm import QKNorm
from train.layers.rope import apply_rotary_emb, rotary_axis_dims, rotary_cos_sin
from train.layers.segments import Segments
from train.parallel import fsdp as sharding
from train.text.encoder import EncodedText

make_dit = functools.partial(make_backbone, "dit")
VARIANTS = {
    "plain": {},
    "registers": {"num_registers": 3},
    "positions": {"absolute_positions": True, "num_registers": 1},
}


def checkpointed(dit: nn.Module) -> nn.Module:
    """Blocks with activation checkpointing."""
    sharding.apply_activation_checkpointing(dit, name="dit")
    return dit


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_packed_forward_equals_each_samples_own_forward(changes):
    dit, pack = make_dit(**changes), make_pack()
    drop = [False, True, False]
    packed = dit(pack.replace(drop_text_S=drop))
    alone = each_alone(dit, pack.replace(drop_text_S=drop))
    assert packed.abs().mean() > 0.05, "nothing to compare"
    assert (packed - alone).abs().max() / alone.abs().max() < 1e-5


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_packed_gradients_equal_the_sum_of_each_samples_own(changes, is_checkpointed):
    dit, pack = make_dit(**changes), make_pack()
    drop = [False, True, False]
    alone = gradients(dit, each_alone(dit, pack.replace(drop_text_S=drop)))
    packed = gradients(dit, (checkpointed(dit) if is_checkpointed else dit)(pack.replace(drop_text_S=drop)))
    assert packed.keys() == alone.keys() == dict(dit.named_parameters()).keys()
    for name, gradient in packed.items():
        assert (gradient - alone[name]).abs().max() <= 1e-5 * alone[name].abs().max(), name


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_activation_checkpointing_gives_exactly_the_same_gradients(changes):
    dit, pack = make_dit(**changes), make_pack()
    expected = gradients(dit, dit(pack))
    again = gradients(dit, checkpointed(dit)(pack))
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_attention_that_leaks_between_samples_is_detected():
    """The comparison above can fail: with attention over the whole pack it does by far."""
    dit, pack = make_dit(), make_pack()
    alone = each_alone(dit, pack)

    def leaking(q, k, v, segments_q, segments_k):
        """Attention over the whole pack; timesteps and texts stay per sample."""
        whole = Segments.from_lengths([segments_q.num_tokens])
        return packed_attention(q, k, v, whole, whole)

    for block in dit.blocks:
        block.attention.attend = leaking
    assert (dit(pack) - alone).abs().max() > 1e-2


def test_the_text_of_another_sample_is_detected_too():
    dit, pack = make_dit(), make_pack()
    swapped = pack.replace(text=dataclasses.replace(pack.text, text_MC=pack.text.text_MC.flip(0)))
    assert (dit(pack) - dit(swapped)).abs().max() > 1e-2


def test_at_initialisation_the_output_is_zero_and_every_block_the_identity():
    torch.manual_seed(0)
    dit = build("dit", token_width=6, text_width=10, pooled_width=7, width=24, depth=2, num_heads=2)
    pack = make_pack()
    assert torch.count_nonzero(dit(pack)) == 0
    x = torch.randn(pack.segments.num_tokens, 24)
    for block in dit.blocks:
        out = block(
            x,
            rotary_cos_sin(pack.position_L3, 12),
            pack.segments,
            torch.randn(3, 24),
            torch.randn(sum(TEXT_LENGTHS), 24),
            pack.text.segments,
        )
        assert torch.equal(out, x)


def test_every_parameter_gets_a_gradient_with_and_without_dropped_captions():
    """DDP waits for all of them."""
    dit, pack = make_dit(), make_pack()
    for drop in ([False] * 3, [True] * 3):
        got = gradients(dit, dit(pack.replace(drop_text_S=drop)))
        assert got.keys() == dict(dit.named_parameters()).keys()


def test_dropped_captions_give_the_null_caption_whatever_the_text():
    dit, pack = make_dit(), make_pack()
    other = pack.replace(text=EncodedText(pack.text.text_MC + 1, pack.text.segments, pack.text.pooled_SC - 1))
    everything = [True] * 3
    assert torch.equal(dit(pack.replace(drop_text_S=everything)), dit(other.replace(drop_text_S=everything)))
    assert not torch.equal(dit(pack), dit(other))
    no_text = pack.replace(
        text=EncodedText(pack.text.text_MC[:0], Segments.from_lengths([0, 0, 0]), pack.text.pooled_SC)
    )
    assert torch.equal(dit(no_text), dit(pack.replace(drop_text_S=everything)))


def test_timestep_and_prompt_act_on_their_own_sample_only():
    dit, pack = make_dit(), make_pack()
    base = dit(pack)
    later = dit(pack.replace(timestep_S=torch.tensor([0.1, 0.6, 0.93])))
    moved = (base - later).abs().amax(-1) > 1e-6
    assert moved.tolist() == (pack.segments.segment_ids_L == 1).tolist()


def test_adaln_functions_equal_the_plain_gather_and_pass_gradcheck():
    segments = Segments.from_lengths([3, 1, 4])
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    normed = torch.nn.functional.layer_norm(x, (5,), eps=NORM_EPS)
    expected = normed * (1 + b[segments.segment_ids_L]) + a[segments.segment_ids_L]
    torch.testing.assert_close(modulated_layer_norm(x, a, b, segments), expected)
    torch.testing.assert_close(gated_residual(x, y, a, segments), x + a[segments.segment_ids_L] * y)
    assert torch.autograd.gradcheck(lambda *p: modulated_layer_norm(*p, segments), (x, a, b))
    assert torch.autograd.gradcheck(lambda *p: gated_residual(*p, segments), (x, y, a))


def saved_bytes(function) -> int:
    """Bytes that autograd saves for backward, each storage once."""
    sizes: dict[int, int] = {}
    saved = []

    def save(tensor):
        saved.append(tensor)  # referenced, so that the address of a storage is not reused
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        function()
    return sum(sizes.values())


def test_a_packed_block_saves_at_most_1_06x_the_memory_of_a_plain_batch():
    """In a plain batch the modulation broadcasts; a gather would cost 1.45x."""
    from train.backbones.dit import DitBlock

    torch.manual_seed(0)
    width, num_samples, length = 64, 4, 128
    block = DitBlock(width, 2, 4.0, packed_attention)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.05)
    position_L3 = torch.cat([grid_positions((2, 8, 8))] * num_samples)
    x = torch.randn(num_samples * length, width, requires_grad=True)
    text = torch.randn(num_samples * 4, width)
    segments, text_segments = (Segments.from_lengths([n] * num_samples) for n in (length, 4))

    def packed():
        return block(x, rotary_cos_sin(position_L3, 32), segments, torch.randn(num_samples, width), text, text_segments)

    def plain():
        """The block with one (1, D) modulation that broadcasts, as in a batch of one timestep."""
        rotary = rotary_cos_sin(position_L3, 32)
        shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation(torch.randn(1, width)).chunk(6, -1)
        norm = torch.nn.functional.layer_norm
        h = x + gate1 * block.attention(norm(x, (width,), eps=1e-6) * (1 + scale1) + shift1, rotary, segments)
        h = h + block.cross_attention(block.cross_norm(h), segments, text, text_segments)
        return h + gate2 * block.mlp(norm(h, (width,), eps=1e-6) * (1 + scale2) + shift2)

    assert saved_bytes(packed) <= 1.06 * saved_bytes(plain)


def test_registers_lengthen_the_sequences_of_the_blocks_only():
    dit, pack = make_dit(num_registers=3), make_pack()
    seen = []
    hook = dit.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[2].lengths))
    out = dit(pack)
    hook.remove()
    assert seen == [tuple(length + 3 for length in pack.segments.lengths)]
    assert out.shape == pack.tokens_LD.shape
    with torch.no_grad():
        dit.register_embedding_RD[1] += 1
    assert not torch.allclose(dit(pack), out), "tokens attend to their registers"
    with pytest.raises(UsageError, match="num_registers = -1"):
        make_dit(num_registers=-1)


def test_frame_0_is_not_rotated():
    """So an image model can initialise a video model."""
    cos, sin = rotary_cos_sin(grid_positions((1, 3, 4)), 12)
    time_pairs = rotary_axis_dims(12)[0] // 2
    assert (cos[:, :time_pairs] == 1).all()
    assert (sin[:, :time_pairs] == 0).all()
    assert (cos[5:, time_pairs:] != 1).any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised by dynamo
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_compiled_block_equals_the_eager_one_and_other_lengths_do_not_recompile(is_checkpointed):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    dit = make_dit()
    eager = copy.deepcopy(dit.blocks)
    blocks = (checkpointed(dit) if is_checkpointed else dit).blocks
    for block in blocks:
        block.compile(backend="aot_eager")
    counts = []
    for number, (lengths, text_lengths) in enumerate(
        [
            ((5, 3), (2, 3)),
            ((7, 9, 4), (1, 2, 5)),
            ((3, 3, 3, 3), (1, 1, 1, 2)),
            ((11, 6), (4, 1)),
            ((10, 2, 5), (2, 2, 2)),
        ]
    ):
        generator = torch.Generator().manual_seed(number)
        inputs = [torch.randn(n, 24, generator=generator) for n in (sum(lengths), len(lengths), sum(text_lengths))]
        rotary = rotary_cos_sin(torch.randint(0, 9, (sum(lengths), 3), generator=generator), 12)
        results = []
        for part in (blocks, eager):
            x, condition, text = (tensor.clone().requires_grad_() for tensor in inputs)
            out = x
            for block in part:
                out = block(
                    out, rotary, Segments.from_lengths(lengths), condition, text, Segments.from_lengths(text_lengths)
                )
            results.append((out, *torch.autograd.grad(out.square().sum(), (x, condition, text))))
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] > 0
    assert counts == counts[:1] * len(counts)


def test_qk_norm_and_rope_on_a_cpu_equal_the_written_out_formulas():
    torch.manual_seed(0)
    x = torch.randn(5, 2, 16, dtype=torch.float64, requires_grad=True)
    rotary = rotary_cos_sin(torch.randint(0, 9, (5, 3)), 16)
    cos, sin = (part.double()[:, None] for part in rotary)
    a, b = x.chunk(2, dim=-1)
    torch.testing.assert_close(apply_rotary_emb(x, rotary), torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1))
    assert torch.autograd.gradcheck(lambda x: apply_rotary_emb(x, rotary), x)
    norm = QKNorm(16, eps=1e-6).double()
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-6))
    assert torch.autograd.gradcheck(lambda x, _: norm(x), (x, norm.weight))
    half = x.detach().bfloat16()
    assert norm.float()(half).dtype == apply_rotary_emb(half, rotary).dtype == torch.float32, "at least float32"


def test_rope_depends_on_distances_only_and_supports_any_head_width():
    assert rotary_axis_dims(64) == (24, 20, 20)
    assert rotary_axis_dims(128) == (44, 42, 42)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 32, generator=generator) for _ in range(2))

    def product(query_position, key_position):
        a = apply_rotary_emb(q, rotary_cos_sin(torch.tensor([query_position]), 32))
        b = apply_rotary_emb(k, rotary_cos_sin(torch.tensor([key_position]), 32))
        return float((a * b).sum())

    assert product([2, 5, 9], [1, 3, 4]) == pytest.approx(product([12, 105, 39], [11, 103, 34]), abs=1e-4)
    assert product([2, 5, 9], [1, 3, 4]) != pytest.approx(product([2, 5, 9], [1, 4, 4]), abs=1e-3)


def test_with_absolute_positions_the_output_depends_on_them_and_without_on_distances_only():
    pack = make_pack()
    moved = pack.replace(position_L3=pack.position_L3 + torch.tensor([1, 2, 3]))
    without, absolute = make_dit(), make_dit(absolute_positions=True)
    torch.testing.assert_close(without(pack), without(moved), atol=1e-4, rtol=1e-4)
    assert (absolute(pack) - absolute(moved)).abs().max() > 1e-2
    again = build("dit", **absolute.config)
    again.load_state_dict(absolute.state_dict())
    assert torch.equal(absolute(pack), again(pack))
    own = each_alone(absolute, pack)
    torch.testing.assert_close(absolute(pack), own, atol=1e-5, rtol=1e-5)
    gradients(absolute, absolute(pack))


def test_autocast_keeps_the_output_float32_and_near_the_exact_one():
    dit, pack = make_dit(), make_pack()
    exact = dit(pack)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = dit(pack)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    gradients(dit, rounded)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_config_rebuilds_the_same_backbone(changes):
    dit = make_dit(**changes)
    again = build("dit", **dit.config)
    again.load_state_dict(dit.state_dict())
    pack = make_pack()
    assert torch.equal(dit(pack), again(pack))


def test_invalid_settings_are_refused():
    sizes = {"token_width": 6, "text_width": 10, "pooled_width": 7}
    with pytest.raises(UsageError, match="is not divisible"):
        build("dit", **sizes, width=25, depth=1, num_heads=2)
    with pytest.raises(UsageError, match="must be even and at least 6"):
        build("dit", **sizes, width=8, depth=1, num_heads=2)
    with pytest.raises(UsageError, match="unknown backbone 'unet': choose one of dit"):
        build("unet")
    with pytest.raises(UsageError, match="backbone 'dit' has no dropout: leave it out"):
        build("dit", **sizes, width=24, depth=1, num_heads=2, dropout=0.5)
    for size in SIZES.values():
        assert sum(rotary_axis_dims(size["width"] // size["num_heads"])) == size["width"] // size["num_heads"]


def test_conditioning_tokens_are_marked_by_an_embedding():
    dit, pack = make_dit(), make_pack()
    condition_mask_L = torch.arange(len(pack.tokens_LD)) % 3 == 0
    plain = dit(pack)
    assert (plain - dit(pack.replace(condition_mask_L=condition_mask_L))).abs().max() > 1e-2
    assert torch.equal(dit(pack.replace(condition_mask_L=torch.zeros_like(condition_mask_L))), plain)
