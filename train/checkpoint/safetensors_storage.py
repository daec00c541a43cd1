"""Plain, unsharded safetensors files that any number of ranks write and read together.

    write_files("step-000500.tmp", tensors, on_written=commit, group=group)      # all ranks, each with its own shards
    read_files("step-000500", tensors)                                           # in place, by any other number of ranks

Key `model.safetensors/blocks.0.weight` is tensor `blocks.0.weight` of file model.safetensors. Each rank writes its shards
at their offsets in the one file, so no rank holds the whole model, there is no consolidation pass, and any safetensors
reader opens the result. The folder must be on a file system that all ranks share and that allows writes at an offset.

torch's own HuggingFaceStorageWriter (2.14) has each rank write a file of its own and rank 0 then copy all of them into
whole ones: for 384 MB on two ranks 768 MB are written and 384 MB read again, in 2.9x the time, and a rank holds its shards
once more in memory (386 MB, here 4 MB). It names the files model-0000i-of-0000N and leaves the prefix in the keys.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from recaption.errors import CheckpointMismatchError

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch dtype -> safetensors dtype name."""


MAX_WRITE_BYTES = 1 << 30
"""Linux writes at most 2 GB per call."""


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorShard:
    """The box of a larger tensor that this rank holds; it may be empty."""

    local: Tensor
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    """Of the box in the whole tensor."""
    is_replicated: bool = False
    """All ranks hold the same box: the first one writes it."""


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, sharing its memory; a plain tensor is returned detached."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def shard_of(tensor: Tensor | TensorShard, values: Tensor | None = None) -> TensorShard:
    """This rank's shard of a tensor; `values`: what it holds in place of the tensor's own (its EMA)."""
    if isinstance(tensor, TensorShard):
        return tensor
    local = local_shard(tensor) if values is None else values
    if not isinstance(tensor, DTensor):
        return TensorShard(local, tuple(tensor.shape), (0,) * tensor.ndim, is_replicated=True)
    (chunk,) = tensor.__create_chunk_list__()
    return TensorShard(local, tuple(tensor.shape), tuple(chunk.offsets))


def copy_to_cpu(tensor: Tensor | TensorShard, buffer: TensorShard | None = None) -> TensorShard:
    """Copy this rank's shard to CPU memory; reuses the memory of `buffer` if shape and dtype match.

    Copies from a GPU are asynchronous: synchronise the stream before reading them.
    """
    shard = shard_of(tensor)
    copy = None if buffer is None else buffer.local
    if copy is None or copy.shape != shard.local.shape or copy.dtype != shard.local.dtype:
        copy = torch.empty(shard.local.shape, dtype=shard.local.dtype, pin_memory=shard.local.is_cuda)
    copy.copy_(shard.local.detach(), non_blocking=True)
    return replace(shard, local=copy)


def _by_file(tensors: Mapping[str, Tensor | TensorShard]) -> dict[str, dict[str, TensorShard]]:
    """File -> name -> shard, sorted."""
    files: dict[str, dict[str, TensorShard]] = defaultdict(dict)
    for key in sorted(tensors):
        file, _, name = key.partition("/")
        files[file][name] = shard_of(tensors[key])
    return files


# --- writing ----------------------------------------------------------------------------------------------------------


def write_files(
    folder: str,
    tensors: Mapping[str, Tensor | TensorShard],
    *,
    on_written: Callable[[], None] = lambda: None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Create `folder` with its files; an error on one rank is raised on all.

    Args:
        tensors: keyed by FILE/NAME, the same keys on all ranks.
        on_written: called by the first rank once all ranks have flushed what they wrote.
        group: a CPU group; all its ranks call this.
    """
    is_first = group is None or dist.get_rank(group) == 0
    files = _by_file(tensors)

    def create() -> None:
        os.mkdir(folder)
        for file, shards in files.items():
            header, _, num_bytes = _layout(shards)
            with open(os.path.join(folder, file), "xb") as stream:
                stream.write(header)
                stream.truncate(num_bytes)

    def write() -> None:
        for file, shards in files.items():
            _write_shards(os.path.join(folder, file), shards, is_first)

    for action in (create if is_first else None, write, on_written if is_first else None):
        _on_all_ranks(action, group)


def _on_all_ranks(action: Callable[[], None] | None, group: dist.ProcessGroup | None) -> None:
    """Run `action` and wait for the other ranks; raises this rank's error, or else that of another."""
    error: Exception | None = None
    try:
        if action is not None:
            action()
    except Exception as caught:
        error = caught
    errors = [error]
    if group is not None:
        errors = [None] * dist.get_world_size(group)
        dist.all_gather_object(errors, error, group=group)
    for failure in (error, *errors):
        if failure is not None:
            raise failure


def _layout(shards: Mapping[str, TensorShard]) -> tuple[bytes, dict[str, int], int]:
    """(header of a file, name -> offset of the whole tensor, bytes of the file), the same on all ranks."""
    entries: dict[str, Any] = {}
    end = 0
    # wide dtypes first, so that each is aligned
    for name in sorted(shards, key=lambda name: (-shards[name].local.itemsize, name)):
        local, shape = shards[name].local, shards[name].shape
        start, end = end, end + local.itemsize * math.prod(shape)
        entries[name] = {"dtype": DTYPE_NAMES[local.dtype], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    offsets = {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items()}
    return header, offsets, len(header) + end


def _write_shards(path: str, shards: Mapping[str, TensorShard], is_first: bool) -> None:
    """Write this rank's shards at their places in a file that exists, and flush it to disk."""
    _, offsets, _ = _layout(shards)
    handle = os.open(path, os.O_WRONLY)
    try:
        for name, shard in shards.items():
            if not shard.local.numel() or (shard.is_replicated and not is_first):
                continue
            width = shard.local.itemsize
            data = memoryview(shard.local.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            for into, start, length in contiguous_runs(shard.offsets, shard.local.shape, shard.shape):
                _write_at(handle, data[start * width : (start + length) * width], offsets[name] + into * width)
        os.fsync(handle)
    finally:
        os.close(handle)


def contiguous_runs(
    offsets: Iterable[int], sizes: Iterable[int], shape: Iterable[int]
) -> Iterator[tuple[int, int, int]]:
    """Contiguous runs of a box in a row-major array: (start in the array, start in the box, length), in elements.

    A shard along the first dimension is one run, along the second one run per row.
    """
    offsets, sizes, shape = list(offsets), list(sizes), list(shape)
    split = len(shape)
    while split and sizes[split - 1] == shape[split - 1]:
        split -= 1
    split = max(0, split - 1)  # the box spans all later dimensions entirely
    length = math.prod(sizes[split:])
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    inner = offsets[split] * strides[split] if shape else 0
    for number, outer in enumerate(itertools.product(*(range(size) for size in sizes[:split]))):
        start = sum((offset + index) * stride for offset, index, stride in zip(offsets, outer, strides))
        yield start + inner, number * length, length


def _write_at(handle: int, data: memoryview, offset_bytes: int) -> None:
    while data:
        written = os.pwrite(handle, data[:MAX_WRITE_BYTES], offset_bytes)
        data, offset_bytes = data[written:], offset_bytes + written


# --- reading ----------------------------------------------------------------------------------------------------------


def read_files(folder: str, tensors: Mapping[str, Tensor | TensorShard]) -> None:
    """Read in place into tensors or shards keyed by FILE/NAME; each rank reads only its own shards.

    Raises:
        CheckpointMismatchError: a file cannot be read; a tensor is missing on either side or has another shape.
    """
    files = _by_file(tensors)
    for file, shards in files.items():
        saved_shapes = shapes_in(os.path.join(folder, file))
        for name in sorted(saved_shapes.keys() | shards.keys()):
            saved, own = saved_shapes.get(name), shards[name].shape if name in shards else None
            if saved != own:
                raise CheckpointMismatchError(
                    f"{folder} does not fit the model: {file}/{name} has shape {saved} in the checkpoint, {own} in the model"
                )
    for file, shards in files.items():
        with safe_open(os.path.join(folder, file), framework="pt") as stream:
            for name, shard in shards.items():
                box = tuple(slice(start, start + size) for start, size in zip(shard.offsets, shard.local.shape))
                if shard.local.numel():
                    shard.local.copy_(stream.get_slice(name)[box] if box else stream.get_tensor(name))


def shapes_in(path: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a file, from its header.

    Raises:
        CheckpointMismatchError: missing, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            return {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointMismatchError(f"{path} cannot be read: {error}") from error
