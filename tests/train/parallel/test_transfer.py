"""Copies to the device, and the stand-in for CUDA that tells which of them block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.stand_ins.pretend_cuda import pretend_cuda
from train.parallel.transfer import copied, to_device


@pytest.fixture
def cuda():
    with pretend_cuda() as log:
        yield log


def test_copies_to_a_gpu_are_pinned_and_wait_for_nothing(cuda):
    batch = {"x": torch.ones(3), "more": [torch.zeros(2), (torch.zeros(1), "text")], "number": 7}
    with cuda.recording():
        moved = to_device(batch, torch.device("cuda"))
        again = copied(moved["x"], "cuda")
    cuda.assert_clean()
    assert cuda.num_copies == 3
    assert moved["x"].device == again.device == torch.device("cuda:0")
    assert moved["more"][1][1] == "text"
    assert moved["number"] == 7


def test_on_a_cpu_nothing_is_pinned():
    x = torch.ones(3)
    assert copied(x, "cpu") is x


PLANTED_COPIES = {
    "blocking": lambda x: torch.ones(3).to(x.device),
    "not pinned": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "created on the device": lambda x: torch.tensor([1, 2], device=x.device),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "list as an index": lambda x: x[[0, 2]],
}
PLANTED_READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "cpu": lambda x: x.cpu(),
    "unique": lambda x: x.unique(),
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("planted", PLANTED_COPIES)
def test_a_planted_blocking_copy_is_seen(cuda, planted):
    x = torch.arange(3.0).to("cuda")
    with cuda.recording():
        PLANTED_COPIES[planted](x)
    assert sum(cuda.blocking_copies.values()) == 1
    assert next(iter(cuda.blocking_copies)).startswith("tests/train/parallel/test_transfer.py:")
    with pytest.raises(AssertionError, match="test_transfer"):
        cuda.assert_clean()


@pytest.mark.parametrize("planted", PLANTED_READS)
def test_a_planted_read_is_seen(cuda, planted):
    x = torch.arange(3.0).to("cuda")
    with cuda.recording():
        PLANTED_READS[planted](x)
    assert sum(cuda.host_syncs.values()) == 1
    with pytest.raises(AssertionError, match="test_transfer"):
        cuda.assert_clean()


def test_devices_do_not_mix_and_the_backward_runs(cuda):
    layer = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to("cuda")
    with pytest.raises(RuntimeError, match="same device"):
        layer(torch.ones(2, 3))
    x = torch.ones(2, 3).to("cuda")
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([x, torch.ones(1, 3)])
    with torch.autocast("cuda", torch.bfloat16):
        assert layer[0](x).dtype == torch.bfloat16
        loss = layer(x).square().sum()
    loss.backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.device == torch.device("cuda:0")


def test_it_computes_what_a_cpu_computes(cuda):
    layer = nn.Linear(3, 4)
    x = torch.randn(5, 3)
    expected = layer(x)
    assert torch.equal(layer.to("cuda")(x.to("cuda")).cpu(), expected)
