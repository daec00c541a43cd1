"""Codebooks are shared by all ranks: two ranks with half a batch each learn what one rank learns from all of it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.stand_ins.ranks import exit_codes, start_ranks
from train.compressors.bottleneck import VqBottleneck
from train.parallel.process_group import process_group, rank

CODES, CODEBOOKS, CHANNELS = 4, 2, 6


def trained_buffers(*, clips: slice, num_steps: int = 3) -> dict[str, torch.Tensor]:
    """Buffers after a few batches, of which this rank sees `clips`; every code has vectors close to it."""
    bottleneck = VqBottleneck(CHANNELS, codebook_size=CODES, num_codebooks=CODEBOOKS).train()
    bottleneck.num_updates.fill_(1)
    bottleneck.ema_counts_GK.fill_(8)
    bottleneck.ema_sums_GKD.copy_(8 * bottleneck.codebook_GKD)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        nearest = torch.stack([torch.randperm(CODES * 8, generator=generator) % CODES for _ in range(CODEBOOKS)])
        vectors_GND = VqBottleneck(CHANNELS, codebook_size=CODES, num_codebooks=CODEBOOKS)._codes(nearest)
        vectors_GND = vectors_GND + 0.1 * torch.randn(vectors_GND.shape, generator=generator)
        clips_BCthw = bottleneck._to_grid(vectors_GND, torch.Size((4, CHANNELS, 2, 2, 2)))
        bottleneck(clips_BCthw[clips])
    return {name: buffer.clone() for name, buffer in bottleneck.named_buffers()}


def one_rank(folder: str) -> None:
    with process_group("cpu"):
        save_file(trained_buffers(clips=slice(rank(), None, 2)), f"{folder}/{rank()}.safetensors")


def test_two_ranks_learn_the_codes_of_one(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(one_rank, str(tmp_path))) == [0, 0]
    expected = trained_buffers(clips=slice(None))
    before = VqBottleneck(CHANNELS, codebook_size=CODES, num_codebooks=CODEBOOKS).codebook_GKD
    assert (expected["codebook_GKD"] - before).abs().max() > 1e-4, "nothing was learned"
    for number in range(2):
        found = load_file(tmp_path / f"{number}.safetensors")
        for name, buffer in expected.items():
            torch.testing.assert_close(found[name], buffer, rtol=1e-5, atol=1e-6)
