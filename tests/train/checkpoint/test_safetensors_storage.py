"""Plain safetensors files of several ranks: layout, sharded writes, partial reads, errors."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from recaption.errors import CheckpointMismatchError
from tests.stand_ins.ranks import exit_codes, start_ranks
from train.checkpoint import safetensors_storage
from train.checkpoint.safetensors_storage import copy_to_cpu, local_shard, read_files, write_files
from train.parallel.process_group import process_group

TENSORS = {
    "model.safetensors/matrix": torch.arange(15.0).reshape(5, 3),
    "model.safetensors/half": torch.arange(4, dtype=torch.bfloat16),
    "model.safetensors/scalar": torch.tensor(2.5, dtype=torch.float64),
    "model.safetensors/empty": torch.zeros(0, 3),
    "counts.safetensors/flags": torch.tensor([True, False, True]),
    "counts.safetensors/number": torch.tensor(-7),
}


def test_any_safetensors_reader_opens_the_files_with_every_dtype_aligned(tmp_path):
    write_files(str(tmp_path / "step"), TENSORS)
    assert sorted(os.listdir(tmp_path / "step")) == ["counts.safetensors", "model.safetensors"]
    for file in ("model", "counts"):
        loaded = load_file(tmp_path / "step" / f"{file}.safetensors")
        expected = {key.partition("/")[2]: tensor for key, tensor in TENSORS.items() if key.startswith(file)}
        assert loaded.keys() == expected.keys()
        for name, tensor in expected.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)


def test_the_same_tensors_make_the_same_bytes(tmp_path):
    write_files(str(tmp_path / "one"), TENSORS)
    write_files(str(tmp_path / "two"), dict(reversed(TENSORS.items())))
    for file in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_tensors_are_loaded_in_place_also_into_transposed_memory(tmp_path):
    write_files(str(tmp_path / "step"), TENSORS)
    matrix = torch.zeros(3, 5).T
    tensors = {key: torch.zeros_like(tensor) for key, tensor in TENSORS.items()} | {"model.safetensors/matrix": matrix}
    read_files(str(tmp_path / "step"), tensors)
    assert torch.equal(matrix, TENSORS["model.safetensors/matrix"])
    assert tensors["counts.safetensors/number"] == -7


@pytest.mark.parametrize("content", [None, b"not safetensors"])
def test_a_missing_or_foreign_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointMismatchError, match=r"model\.safetensors cannot be read"):
        read_files(str(tmp_path), {"model.safetensors/w": torch.zeros(2)})


def test_large_tensors_are_written_in_several_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_storage, "MAX_WRITE_BYTES", 7)
    write_files(str(tmp_path / "step"), TENSORS)
    assert torch.equal(load_file(tmp_path / "step" / "model.safetensors")["matrix"], torch.arange(15.0).reshape(5, 3))


def test_a_copy_keeps_its_values_and_reuses_its_buffer():
    tensor = torch.arange(6.0)
    copy = copy_to_cpu(tensor)
    tensor += 1
    assert torch.equal(copy.local, torch.arange(6.0))
    assert copy_to_cpu(tensor, copy).local is copy.local
    assert torch.equal(copy.local, tensor)
    assert copy_to_cpu(tensor.reshape(2, 3), copy).local is not copy.local


@pytest.mark.parametrize("dim", [0, 1])
def test_two_ranks_write_one_file_and_any_number_of_ranks_reads_it(tmp_path, dim):
    assert exit_codes(start_ranks(write_and_read_shards, str(tmp_path), dim)) == [0, 0]
    with safe_open(tmp_path / "step" / "model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("matrix"), torch.arange(15.0).reshape(5, 3))
        assert torch.equal(file.get_tensor("short"), torch.tensor([3.0]))


def write_and_read_shards(folder: str, dim: int) -> None:
    with process_group("cpu"):
        mesh = init_device_mesh("cpu", (2,))
        wholes = {
            "model.safetensors/matrix": distribute_tensor(torch.arange(15.0).reshape(5, 3), mesh, [Shard(dim)]),
            "model.safetensors/short": distribute_tensor(torch.tensor([3.0]), mesh, [Shard(0)]),  # rank 1 has no part
        }
        step = os.path.join(folder, "step")
        write_files(step, wholes, group=dist.group.WORLD)
        targets = {key: torch.zeros_like(whole) for key, whole in wholes.items()}
        read_files(step, targets)
        for key, whole in wholes.items():
            assert torch.equal(local_shard(targets[key]), local_shard(whole)), key


def test_an_error_of_one_rank_is_raised_on_all_and_nothing_is_committed(tmp_path):
    assert exit_codes(start_ranks(write_with_a_full_disk, str(tmp_path))) == [0, 0]
    assert not (tmp_path / "committed").exists()


def write_with_a_full_disk(folder: str) -> None:
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    with process_group("cpu"):
        if dist.get_rank() == 1:
            os.pwrite = full
        matrix = distribute_tensor(torch.arange(15.0).reshape(5, 3), init_device_mesh("cpu", (2,)), [Shard(0)])
        commit = Path(folder, "committed").touch
        with pytest.raises(OSError, match="No space left"):
            write_files(
                os.path.join(folder, "step"), {"model.safetensors/w": matrix}, on_written=commit, group=dist.group.WORLD
            )


@given(st.data())
def test_contiguous_runs_of_a_box_are_its_elements_in_order(data):
    shape = data.draw(st.lists(st.integers(1, 5), max_size=4))
    box = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    offsets, sizes = [a for a, _ in box], [b - a for a, b in box]
    whole = torch.arange(math.prod(shape)).reshape(shape)
    part = whole[tuple(slice(a, b) for a, b in box)].reshape(-1)
    found = torch.full_like(part, -1)
    for start, inside, length in safetensors_storage.contiguous_runs(offsets, sizes, shape):
        found[inside : inside + length] = whole.reshape(-1)[start : start + length]
    assert torch.equal(found, part)
