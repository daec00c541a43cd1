"""Packed training against padding, dense masks and exact buckets: real tokens per CPU-second of forward, backward, AdamW.

    python tests/benchmarks/train/bench_packed_training.py --rounds 2

Depth 6, width 384, 6 heads, 64 numbers per token, 8 text tokens per sample; lengths as `bench_plan.random_lengths` has them,
without those above 2,048 tokens; of 200 of them, 24 samples that are five random packs of a plan. All four variants run
the same `Dit` on the same samples with a timestep each:

    packed      packs of at most 4,096 tokens, as trained here: attention per sample, adaLN per sample
    dense_mask  the same packs, attention over the whole pack with a boolean mask
    padded      batches of 8, every sample as long as the longest, key mask, adaLN that broadcasts over the batch
    buckets     batches of equal lengths, at most 4,096 tokens: no padding, no mask, broadcasting adaLN; the cost of
                exact buckets if every size had its own

AdamW steps once per pack or batch of 8; `buckets` steps once per 4,096 tokens. The variants alternate batch by batch; a
round's ratio is that of its sums, and the median over rounds is printed. All variants are first checked to have the same
gradient. Goals: packed is at least 2.0x padded, 1.8x dense_mask and 0.93x buckets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "packing"))

from bench_plan import random_lengths

from packing.plan.steps import plan_packs
from train.backbones.dit import Dit
from train.backbones.interface import PackedInputs
from train.layers.adaln import NORM_EPS
from train.layers.embeddings import timestep_embedding
from train.layers.rope import apply_rotary_emb, rotary_cos_sin
from train.layers.segments import Segments
from train.text.encoder import EncodedText

CAPACITY, MAX_TOKENS, BATCH, PACKS, POOL = 4096, 2048, 8, 5, 200
TOKEN_WIDTH, TEXT_WIDTH, TEXT_TOKENS = 64, 64, 8
GOALS = {"padded": 2.0, "dense_mask": 1.8, "buckets": 0.93}


@dataclass(frozen=True)
class Sample:
    tokens_LD: Tensor
    target_LD: Tensor
    text_MC: Tensor
    timestep: float
    pack: int

    @property
    def length(self) -> int:
        return len(self.tokens_LD)


def random_samples(lengths: Sequence[int], packs: Sequence[int], seed: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Sample(
            torch.randn(n, TOKEN_WIDTH, generator=generator),
            torch.randn(n, TOKEN_WIDTH, generator=generator),
            torch.randn(TEXT_TOKENS, TEXT_WIDTH, generator=generator),
            float(torch.rand((), generator=generator)),
            pack,
        )
        for n, pack in zip(lengths, packs, strict=True)
    ]


def positions(length: int) -> Tensor:
    return torch.stack([torch.zeros(length), torch.arange(length) // 32, torch.arange(length) % 32], dim=1).long()


# --- one pack ---------------------------------------------------------------------------------------------------------


def pack_loss(model: Dit, samples: Sequence[Sample]) -> Tensor:
    """Sum of squared errors of a pack, through the model's own forward."""
    out_LD = model(
        PackedInputs(
            tokens_LD=torch.cat([sample.tokens_LD for sample in samples]),
            position_L3=torch.cat([positions(sample.length) for sample in samples]),
            segments=Segments.from_lengths([sample.length for sample in samples]),
            timestep_S=torch.tensor([sample.timestep for sample in samples]),
            text=EncodedText(
                torch.cat([sample.text_MC for sample in samples]),
                Segments.from_lengths([TEXT_TOKENS] * len(samples)),
                torch.stack([sample.text_MC[0] for sample in samples]),
            ),
        )
    )
    return (out_LD - torch.cat([sample.target_LD for sample in samples])).square().sum()


def dense_mask_loss(model: Dit, samples: Sequence[Sample]) -> Tensor:
    """The same with attention over the whole pack; one mask per pack, as a trainer would cache it."""
    masks: dict[tuple[int, int], Tensor] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, of_q: Segments, of_k: Segments) -> Tensor:
        key = (of_q.num_tokens, of_k.num_tokens)
        if key not in masks:
            masks[key] = of_q.segment_ids_L[:, None] == of_k.segment_ids_L
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=masks[key])[0].transpose(0, 1)

    layers = [layer for block in model.blocks for layer in (block.attention, block.cross_attention)]
    ours = layers[0].attend
    try:
        for layer in layers:
            layer.attend = attend
        return pack_loss(model, samples)
    finally:
        for layer in layers:
            layer.attend = ours


# --- one batch (B, L, D) ----------------------------------------------------------------------------------------------


def batch_loss(model: Dit, samples: Sequence[Sample]) -> Tensor:
    """A batch padded to the longest sample, with a key mask where there is padding."""
    tokens_BLD, target_BLD = (
        nn.utils.rnn.pad_sequence([getattr(sample, name) for sample in samples], batch_first=True)
        for name in ("tokens_LD", "target_LD")
    )
    longest, lengths = tokens_BLD.shape[1], torch.tensor([sample.length for sample in samples])
    is_real_BL = torch.arange(longest) < lengths[:, None]
    mask = None if bool(is_real_BL.all()) else is_real_BL[:, None, None]
    text_BMC = torch.stack([sample.text_MC for sample in samples])
    timestep_B = torch.tensor([sample.timestep for sample in samples])
    condition_BD = model.t_embedder.mlp(timestep_embedding(timestep_B)) + model.text_embedder.pooled(text_BMC[:, 0])
    text_BMD, rotary = model.text_embedder.tokens(text_BMC), rotary_cos_sin(positions(longest), model.head_width)
    x_BLD = model.x_embedder(tokens_BLD)
    for block in model.blocks:
        x_BLD = batch_block(block, x_BLD, rotary, condition_BD, text_BMD, mask)
    shift, scale = model.final_adaLN_modulation(condition_BD)[:, None].chunk(2, -1)
    error_BLD = model.final_linear(modulated(x_BLD, shift, scale)) - target_BLD
    return (error_BLD.square() * is_real_BL[..., None]).sum()


def modulated(x_BLD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=NORM_EPS) * (1 + scale_B1D) + shift_B1D


def batch_block(
    block: nn.Module,
    x_BLD: Tensor,
    rotary: tuple[Tensor, Tensor],
    condition_BD: Tensor,
    text_BMD: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """`DitBlock` over a batch, with the layers of the block."""
    shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation(condition_BD)[:, None].chunk(6, -1)
    own, cross = block.attention, block.cross_attention
    q, k, v = own.qkv(modulated(x_BLD, shift1, scale1)).unflatten(-1, (3, own.num_heads, -1)).unbind(2)
    q, k = (apply_rotary_emb(norm(x), rotary) for norm, x in ((own.q_norm, q), (own.k_norm, k)))
    x_BLD = x_BLD + gate1 * own.out(attention(q, k, v, mask))
    q = cross.q_norm(cross.q(block.cross_norm(x_BLD)).unflatten(-1, (cross.num_heads, -1)))
    k, v = cross.kv(text_BMD).unflatten(-1, (2, cross.num_heads, -1)).unbind(2)
    x_BLD = x_BLD + cross.out(attention(q, cross.k_norm(k), v, None))
    return x_BLD + gate2 * block.mlp(modulated(x_BLD, shift2, scale2))


def attention(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BMHD, v_BMHD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


# --- four variants ----------------------------------------------------------------------------------------------------


def random_round(lengths: np.ndarray, number: int) -> list[Sample]:
    """Three batches of 8 that are also five packs of a plan over many samples, in random order; each sample has its pack."""
    pool = lengths[number * POOL : (number + 1) * POOL]
    packs = plan_packs(pool, capacity=CAPACITY, policy="best_fit")
    rng = np.random.default_rng(number)
    while True:
        chosen = [packs[pack] for pack in rng.choice(len(packs), PACKS, replace=False)]
        if sum(map(len, chosen)) == 3 * BATCH:
            break
    pack_of = {int(index): number for number, pack in enumerate(chosen) for index in pack}
    order = sorted(pack_of)
    return random_samples([int(pool[index]) for index in order], [pack_of[index] for index in order], number)


def packs_of(samples: Sequence[Sample]) -> list[list[Sample]]:
    numbers = sorted({sample.pack for sample in samples})
    return [[sample for sample in samples if sample.pack == number] for number in numbers]


def batches_of_8(samples: Sequence[Sample]) -> list[list[Sample]]:
    return [list(samples[start : start + BATCH]) for start in range(0, len(samples), BATCH)]


def equal_lengths(samples: Sequence[Sample]) -> list[list[Sample]]:
    ordered = sorted(samples, key=lambda sample: sample.length)
    batches = []
    for length, group in itertools.groupby(ordered, key=lambda sample: sample.length):
        same, per_batch = list(group), max(1, CAPACITY // length)
        batches += [same[start : start + per_batch] for start in range(0, len(same), per_batch)]
    return batches


Loss = Callable[[Dit, Sequence[Sample]], Tensor]
VARIANTS: dict[str, tuple[Callable[[Sequence[Sample]], list[list[Sample]]], Loss, bool]] = {
    "packed": (packs_of, pack_loss, True),
    "dense_mask": (packs_of, dense_mask_loss, True),
    "padded": (batches_of_8, batch_loss, True),
    "buckets": (equal_lengths, batch_loss, False),
}
"""Batching, loss, whether AdamW steps after each batch."""


def new_model(width: int, depth: int) -> Dit:
    torch.manual_seed(0)
    sizes = {"token_width": TOKEN_WIDTH, "text_width": TEXT_WIDTH, "pooled_width": TEXT_WIDTH}
    model = Dit(**sizes, width=width, depth=depth, num_heads=width // 64, attention_backend="loop")
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)  # zeros would hide differences
    return model


def run_batches(name: str, samples: Sequence[Sample], model: Dit) -> Iterator[float]:
    """Train on one batch after the other; yields the CPU seconds of each."""
    batches_of, loss_of, steps_each = VARIANTS[name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    num_pending = 0
    batches = batches_of(samples)
    for number, batch in enumerate(batches):
        started = time.process_time()
        loss_of(model, batch).backward()
        num_pending += sum(sample.length for sample in batch)
        if steps_each or num_pending >= CAPACITY or number == len(batches) - 1:
            optimizer.step()
            optimizer.zero_grad()
            num_pending = 0
        yield time.process_time() - started


def measure_round(samples: Sequence[Sample], models: dict[str, Dit]) -> dict[str, float]:
    """Real tokens per CPU-second of every variant; they alternate batch by batch."""
    running = {name: run_batches(name, samples, model) for name, model in models.items()}
    seconds = dict.fromkeys(models, 0.0)
    while running:
        for name in list(running):
            spent = next(running[name], None)
            if spent is None:
                del running[name]
            else:
                seconds[name] += spent
    num_tokens = sum(sample.length for sample in samples)
    return {name: num_tokens / spent for name, spent in seconds.items()}


def check_same_gradient() -> None:
    model, samples = new_model(128, 2), random_samples([60, 37, 37, 5], [0, 1, 0, 1], 0)
    gradients = {}
    for name, (batches_of, loss_of, _) in VARIANTS.items():
        loss = torch.stack([loss_of(model, batch) for batch in batches_of(samples)]).sum()
        gradients[name] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(compared_parameters(model)))])
    for name, gradient in gradients.items():
        difference = float((gradient - gradients["packed"]).abs().max() / gradient.abs().max())
        if difference > 1e-5:
            raise SystemExit(f"{name} computes another gradient than packed: {difference:.1e}")


def compared_parameters(model: Dit) -> Iterator[Tensor]:
    """All but the embeddings of null captions and conditioning tokens, which this benchmark has not."""
    for name, parameter in model.named_parameters():
        if not name.startswith(("null_", "condition_mask_")):
            yield parameter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="each has other samples")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    check_same_gradient()
    lengths = random_lengths(100_000)
    lengths = lengths[lengths <= MAX_TOKENS]
    models = {name: new_model(384, 6) for name in VARIANTS}
    measure_round(random_samples([64] * BATCH, [0] * BATCH, 0), models)  # warm up
    found = []
    for number in range(options.rounds):
        samples = random_round(lengths, number)
        found.append(measure_round(samples, models))
        num_tokens = sum(sample.length for sample in samples)
        padded = sum(len(batch) * max(sample.length for sample in batch) for batch in batches_of_8(samples))
        fills = f"fill {num_tokens / CAPACITY / len(packs_of(samples)):.3f} in packs, {num_tokens / padded:.2f} padded"
        ratios = "  ".join(f"{name} {found[-1]['packed'] / found[-1][name]:.2f}x" for name in GOALS)
        print(f"round {number}: {num_tokens} tokens, {fills}; packed is {ratios}", file=sys.stderr)
    medians = {name: statistics.median(rates["packed"] / rates[name] for rates in found) for name in GOALS}
    missed = {name: goal for name, goal in GOALS.items() if medians[name] < goal}
    rates = {name: statistics.median(rates[name] for rates in found) for name in VARIANTS}
    if options.json:
        print(json.dumps({"packed_over": medians, "tokens_per_cpu_second": rates, "missed_goals": missed}))
    else:
        print(f"{'variant':<12}{'tokens / CPU-s':>16}{'packed is':>12}{'goal':>8}")
        for name in VARIANTS:
            goal = f"{medians[name]:>11.2f}x{GOALS[name]:>7.2f}x" if name in GOALS else ""
            print(f"{name:<12}{rates[name]:>16.0f}{goal}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
