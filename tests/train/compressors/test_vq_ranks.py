"""The lists of codes are one for all ranks: what two learn from half a batch each is what one learns from all of it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.stand_ins.ranks import exit_codes, start_ranks
from train.compressors.bottleneck import VqBottleneck
from train.parallel import process_group as distributed

CODES, GROUPS, CHANNELS = 4, 2, 6


def learned(*, share: slice, num_steps: int = 3) -> dict[str, torch.Tensor]:
    """Buffers after a few batches, of which this rank sees a share of the clips; every code has vectors beside it."""
    bottleneck = VqBottleneck(CHANNELS, codes=CODES, groups=GROUPS).train()
    bottleneck.num_updates.fill_(1)
    bottleneck.counts_GK.fill_(8)
    bottleneck.sums_GKD.copy_(8 * bottleneck.codes_GKD)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        nearest = torch.stack([torch.randperm(CODES * 8, generator=generator) % CODES for _ in range(GROUPS)])
        vectors_GND = VqBottleneck(CHANNELS, codes=CODES, groups=GROUPS)._codes(nearest)
        vectors_GND = vectors_GND + 0.1 * torch.randn(vectors_GND.shape, generator=generator)
        clips_BCthw = bottleneck._places(vectors_GND, torch.Size((4, CHANNELS, 2, 2, 2)))
        bottleneck(clips_BCthw[share])
    return {name: buffer.clone() for name, buffer in bottleneck.named_buffers()}


def one_rank(folder: str) -> None:
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        save_file(learned(share=slice(rank, None, 2)), f"{folder}/{rank}.safetensors")


def test_two_ranks_learn_the_codes_of_one(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(one_rank, str(tmp_path))) == [0, 0]
    expected = learned(share=slice(None))
    before = VqBottleneck(CHANNELS, codes=CODES, groups=GROUPS).codes_GKD
    assert (expected["codes_GKD"] - before).abs().max() > 1e-4, "nothing was learned"
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, buffer in expected.items():
            torch.testing.assert_close(found[name], buffer, rtol=1e-5, atol=1e-6)
