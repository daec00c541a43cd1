"""The masked objective of MDT: two passes in one call, drawn from (seed, epoch, clip id), counted in FLOPs and memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from packing.buckets import Bucket
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from tests.stand_ins.memory_source import MemorySource
from tests.stand_ins.packed_task import WordTower
from train.backbones.mdt import MdtSettings
from train.diffusion.process import add_noise
from train.generator.masked_objective import MaskedDiffusionObjective, sample_mask
from train.generator.objective import DiffusionObjective
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.layers import attention
from train.layers.segments import Segments
from train.layers.token_mask import TokenMask
from train.text.encoder import TextEncoder

BUCKETS = (Bucket(5, 32, 32, 8), Bucket(1, 32, 48, 8))


def make_task(
    *, width: int = 24, rules: dict | None = None, mdt: MdtSettings | None = None, buckets=BUCKETS, **changes
) -> DitTask:
    latents = []
    for index in range(6):
        bucket = buckets[index % 2]
        shape = (8, 1 + (bucket.num_frames - 1) // 4, bucket.height_px // 8, bucket.width_px // 8)
        latents.append(np.random.default_rng(index).standard_normal(shape).astype(np.float32))
    task = DitTask(
        MemorySource(latents, [f"clip-{index}" for index in range(6)], ["blue", "red hill"] * 3),
        DitSettings(
            backbone="mdt", width=width, depth=4, num_heads=2, mdt=mdt or MdtSettings(), caption_dropout=0.4, **changes
        ),
        PlanSettings(capacity=120 if buckets is BUCKETS else 400, **(rules or {})),
        compressor="patch:8",
        buckets=buckets,
        encoder=TextEncoder(WordTower(), spec="words", weights_hash="0"),
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in task.model.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.2, generator=generator)
    return task


def first_batch(task: DitTask):
    return task.prepared(next(iter(task.batches(0, 0, 1))), step=0, seed=0)


def test_the_loss_is_that_of_a_whole_pass_plus_that_of_a_masked_one():
    """Two calls one after the other, as the reference makes them, with gradients."""
    task = make_task(conditions=("none=0.5", "first=0.5"))
    batch = first_batch(task)
    draws = batch.draws
    parameters = list(task.model.parameters())
    loss_sum, weight = task.objective.loss(task.model, batch, draws)
    gradients = torch.autograd.grad(loss_sum, parameters)
    whole, whole_weight = DiffusionObjective.loss(task.objective, task.model, batch, draws)
    noised = add_noise(batch.tokens_LD, draws.masked.noise, batch.segments, task.settings.diffusion)
    is_masked_L = torch.zeros(2 * batch.segments.num_tokens, dtype=torch.bool)
    is_masked_L[draws.masked.mask.masked_index_N] = True
    not_masked_L, is_masked_L = is_masked_L.chunk(2)
    assert not not_masked_L.any()
    inputs = batch.inputs(noised.x_LD, draws.noise.timestep_S, draws.text, draws.condition_mask_L)
    prediction_LD = task.model(inputs.replace(token_mask=TokenMask.of(is_masked_L, batch.segments)))
    hidden, _ = task.objective.diffusion_loss(prediction_LD, noised, batch, draws.condition_mask_L)
    torch.testing.assert_close(loss_sum, whole + hidden)
    assert torch.equal(weight, whole_weight)
    assert not torch.equal(draws.noise.noise_LD, draws.masked.noise.noise_LD)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for gradient, expected in zip(gradients, torch.autograd.grad(whole + hidden, parameters), strict=True):
        assert (gradient - expected).abs().max() <= 1e-5 * largest


def test_masks_are_of_the_clip_and_spare_conditioning_tokens():
    segments = Segments.from_lengths([40, 1, 7, 40])
    excluded_L = torch.zeros(88, dtype=torch.bool)
    excluded_L[:10] = excluded_L[41:48] = True
    names = ["a", "b", "c", "d"]
    found = sample_mask(names, segments, 0.3, 0.5, key=(0, 0), excluded_L=excluded_L).split([40, 1, 7, 40])
    assert not (torch.cat(found) & excluded_L).any()
    counts = [int(part.sum()) for part in found]
    assert 9 <= counts[0] <= 15, "30 to 50 % of the 30 tokens that are not given"
    assert counts[1:3] == [0, 0], "one token stays, and a clip of conditioning tokens"
    assert 12 <= counts[3] <= 20
    again = sample_mask(["d"], Segments.from_lengths([40]), 0.3, 0.5, key=(0, 0))
    assert torch.equal(again, found[3]), "neither its place in the pack nor its neighbours matter"
    for other in ({"key": (0, 1)}, {"key": (1, 0)}):
        assert not torch.equal(sample_mask(["d"], Segments.from_lengths([40]), 0.3, 0.5, **other), found[3])
    shares = [
        float(sample_mask([str(i)], Segments.from_lengths([1000]), 0.3, 0.5, key=(0,)).float().mean())
        for i in range(50)
    ]
    assert min(shares) < 0.32
    assert max(shares) > 0.48
    assert all(0.3 <= share <= 0.501 for share in shares)


def test_dropped_tokens_are_gone_before_the_mask_is_drawn():
    batch = first_batch(make_task(rules={"token_keep_rate": ("0.5",)}))
    lengths = batch.segments.lengths
    assert max(lengths) < 32
    visible = batch.draws.masked.mask.visible_segments.lengths
    assert visible[: len(lengths)] == lengths
    assert all(0 < some < length for some, length in zip(visible[len(lengths) :], lengths, strict=True))


def test_masking_can_be_switched_off():
    task = make_task(mdt=MdtSettings(mask_ratio=()))
    assert type(task.objective) is DiffusionObjective
    assert task.model.side_block is None
    assert first_batch(task).draws.masked is None
    assert type(make_task().objective) is MaskedDiffusionObjective


@pytest.mark.parametrize("mdt", [MdtSettings(), MdtSettings(mask_ratio=())], ids=["masked", "not masked"])
def test_flops_of_a_step_are_within_two_percent_of_torchs_count(monkeypatch, mdt):
    def written_out(q, k, v, *bias):
        """Torch does not count the CPU's fused attention."""
        return (q @ k.transpose(2, 3)).softmax(dim=3) @ v

    monkeypatch.setattr(attention, "_attend", written_out)
    task = make_task(width=96, mdt=mdt, buckets=(Bucket(9, 64, 64, 8), Bucket(5, 64, 96, 8)))
    batch = first_batch(task)
    with FlopCounterMode(display=False) as counted:
        parts = task.loss(batch, step=0, seed=0)
        parts.loss_sum.backward()
    assert parts.flops == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_memory_and_flops_count_both_passes():
    masked, plain = make_task(), make_task(mdt=MdtSettings(mask_ratio=()))
    how = {"precision": "bf16", "checkpointed": False}
    both, one = (task.objective.activation_bytes(task.model, [96, 32], [2, 3], **how) for task in (masked, plain))
    assert 1.8 * one < both < 2.6 * one
    batch = first_batch(masked)
    flops = masked.objective.flops(masked.model, batch)
    assert flops > 1.7 * plain.objective.flops(plain.model, batch)
    undrawn = masked.objective.flops(masked.model, dataclasses.replace(batch, draws=None))
    assert undrawn == pytest.approx(flops, rel=0.1)


def test_settings_of_a_backbone_that_is_not_chosen_are_an_error():
    with pytest.raises(UsageError, match="settings of mdt have no effect with backbone 'dit'"):
        DitSettings(mdt=MdtSettings(decoder_depth=4)).check()
    with pytest.raises(UsageError, match="mask_ratio"):
        DitSettings(backbone="mdt", mdt=MdtSettings(mask_ratio=(0.9,))).check()


def test_a_backend_without_the_bias_is_refused_at_the_start():
    with pytest.raises(UsageError, match="'varlen' has no relative position bias"):
        make_task(mdt=MdtSettings(relative_bias=(1, 4, 4)), attention_backend="varlen")


def test_both_passes_of_a_super_resolution_stage_have_its_hint():
    shapes = [(3, 5, 8, 8), (3, 1, 8, 12)]
    latents = [np.random.default_rng(i).standard_normal(shapes[i % 2]).astype(np.float32) for i in range(4)]
    task = DitTask(
        MemorySource(latents, [f"clip-{index}" for index in range(4)], ["blue", "red hill"] * 2),
        DitSettings(backbone="mdt", width=24, depth=4, num_heads=2, stage="ssr", patch=(1, 2, 2)),
        PlanSettings(capacity=120),
        latents="pixels",
        compressor="pixels",
        buckets=(Bucket(5, 8, 8, 8), Bucket(1, 8, 12, 8)),
        encoder=TextEncoder(WordTower(), spec="words", weights_hash="0"),
    )
    batch, seen = first_batch(task), []
    task.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    task.loss(batch, step=0, seed=0).loss_sum.backward()
    (inputs,) = seen
    first, second = inputs.hint_LD.chunk(2)
    assert torch.equal(first, batch.draws.hint_LD)
    assert torch.equal(first, second)
    assert all(value_S.shape == (2 * len(batch.segments),) for value_S in inputs.scalars.values())
    assert inputs.scalars
