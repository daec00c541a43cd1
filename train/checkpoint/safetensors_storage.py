"""Storage of torch.distributed.checkpoint (DCP) in plain, unsharded safetensors files, for any number of ranks.

    dcp.save(tensors, storage_writer=SafetensorsWriter("step-000500.tmp"), process_group=group)
    dcp.load(tensors, storage_reader=SafetensorsReader("step-000500", ["model.safetensors"]), no_dist=True)

Key `model.safetensors/blocks.0.weight` is tensor `blocks.0.weight` of file model.safetensors. Each rank writes its shards
at their offsets in the one file, so no rank holds the whole model, there is no consolidation pass, and any safetensors
reader opens the result. It therefore loads on any number of ranks, sharded or not. The folder must be on a file system
that all ranks share and that allows writes at an offset.

DCP's own storage pickles its `.metadata`; here nothing is pickled.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from recaption.errors import CheckpointMismatchError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors dtype name -> torch dtype."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_WRITE_BYTES = 1 << 30
"""Linux writes at most 2 GB per call."""


# --- shards -----------------------------------------------------------------------------------------------------------


class _Shard(Protocol):
    """Attributes by which torch.distributed.checkpoint recognises a tensor as a shard of a larger one."""

    global_shape: tuple[int, ...]
    global_offsets: tuple[tuple[int, ...], ...]
    local_offsets: tuple[tuple[int, ...], ...]
    local_sizes: tuple[tuple[int, ...], ...]


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, sharing its memory; a plain tensor is returned detached."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def as_shard(shard: Tensor, whole: Tensor) -> Tensor | None:
    """`shard` with the attributes of this rank's shard of `whole`; None if the rank's shard is empty.

    `shard` may hold other values than `whole` has (its EMA). If `whole` is no DTensor, `shard` is returned as is.
    """
    if not isinstance(whole, DTensor):
        return shard
    (chunk,) = whole.__create_chunk_list__()
    if not math.prod(chunk.sizes):
        return None
    view: Any = shard.view_as(shard)  # the attributes belong to this view, not to the parameter
    view.global_shape = tuple(whole.shape)
    view.global_offsets = (tuple(chunk.offsets),)
    view.local_offsets = (tuple(0 for _ in chunk.sizes),)
    view.local_sizes = (tuple(chunk.sizes),)
    return view  # type: ignore[no-any-return]


def copy_to_cpu(tensor: Tensor, buffer: Tensor | None = None) -> Tensor:
    """Copy to CPU memory, with the attributes of `as_shard`; reuses `buffer` if shape and dtype match.

    Copies from a GPU are asynchronous: synchronise the stream before reading them.
    """
    copy: Any = buffer
    if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    copy.copy_(tensor.detach(), non_blocking=True)
    for name in _Shard.__annotations__:
        if hasattr(tensor, name):
            setattr(copy, name, getattr(tensor, name))
    return copy  # type: ignore[no-any-return]


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Location:
    """File and offset of a whole tensor."""

    file: str
    offset_bytes: int


class SafetensorsWriter(StorageWriter):
    """Writes into the folder `path`, which rank 0 creates; it calls `on_written` once all ranks have flushed their files."""

    def __init__(self, path: str, *, on_written: Callable[[], None] = lambda: None) -> None:
        self.path, self.on_written = path, on_written

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            os.mkdir(self.path)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On rank 0: lay out the files from the plans of all ranks, and add each tensor's location to the plans."""
        wholes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for item in (item for plan in plans for item in plan.items):
            assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
            wholes[item.index.fqn] = (item.tensor_data.properties.dtype, tuple(item.tensor_data.size))
        locations = self._create_files(wholes)
        return [
            replace(plan, storage_data={item.index.fqn: locations[item.index.fqn] for item in plan.items})
            for plan in plans
        ]

    def _create_files(self, wholes: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, _Location]:
        locations: dict[str, _Location] = {}
        files: dict[str, list[str]] = defaultdict(list)
        for key in wholes:
            files[_split(key)[0]].append(key)
        for file, keys in files.items():
            keys.sort(key=lambda key: (-wholes[key][0].itemsize, key))  # wide dtypes first, so that each is aligned
            header: dict[str, Any] = {}
            ends = [0]
            for key in keys:
                dtype, shape = wholes[key]
                ends.append(ends[-1] + dtype.itemsize * math.prod(shape))
                header[_split(key)[1]] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": ends[-2:]}
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            start = 8 + len(text)
            locations |= {key: _Location(file, start + end) for key, end in zip(keys, ends)}
            with open(os.path.join(self.path, file), "xb") as stream:
                stream.write(struct.pack("<Q", len(text)) + text)
                stream.truncate(start + ends[-1])
        return locations

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        handles: dict[str, int] = {}
        results = []
        try:
            for item in plan.items:
                assert item.tensor_data is not None
                location: _Location = plan.storage_data[item.index.fqn]
                if location.file not in handles:
                    handles[location.file] = os.open(os.path.join(self.path, location.file), os.O_WRONLY)
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor)
                data = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
                chunk, size = item.tensor_data.chunk, item.tensor_data.size
                for into, start, length in contiguous_runs(chunk.offsets, chunk.sizes, size):
                    width = tensor.dtype.itemsize
                    run = data[start * width : (start + length) * width]
                    _write_at(handles[location.file], run, location.offset_bytes + into * width)
                results.append(WriteResult(index=item.index, size_in_bytes=len(data), storage_data=None))
            for handle in handles.values():
                os.fsync(handle)
        finally:
            for handle in handles.values():
                os.close(handle)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.on_written()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return os.path.isabs(checkpoint_id)


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


def _split(key: str) -> tuple[str, str]:
    file, _, name = key.partition("/")
    return file, name


# --- reading ----------------------------------------------------------------------------------------------------------


class SafetensorsReader(StorageReader):
    """Reads the safetensors files `files` of the folder `path`; each rank reads only the slices it requests."""

    def __init__(self, path: str, files: Iterable[str]) -> None:
        self.path, self.files = path, list(files)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Shapes and dtypes, from the file headers.

        Raises:
            CheckpointMismatchError: a file is missing or not safetensors.
        """
        tensors: dict[str, TensorStorageMetadata] = {}
        for file in self.files:
            path = os.path.join(self.path, file)
            try:
                with safe_open(path, framework="pt") as stream:
                    for name in stream.keys():  # noqa: SIM118 (not a dict)
                        tensor = stream.get_slice(name)
                        size = torch.Size(tensor.get_shape())
                        tensors[f"{file}/{name}"] = TensorStorageMetadata(
                            properties=TensorProperties(dtype=DTYPES[tensor.get_dtype()]),
                            size=size,
                            chunks=[ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=size)],
                        )
            except (OSError, SafetensorError, KeyError) as error:
                raise CheckpointMismatchError(f"{path} cannot be read: {error}") from error
        return Metadata(state_dict_metadata=dict(tensors), storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        items_of_file = defaultdict(list)
        for item in plan.items:
            items_of_file[_split(item.storage_index.fqn)[0]].append(item)
        for file, items in items_of_file.items():
            with safe_open(os.path.join(self.path, file), framework="pt") as stream:
                for item in items:
                    name = _split(item.storage_index.fqn)[1]
                    box = tuple(slice(a, a + b) for a, b in zip(item.storage_offsets, item.lengths))
                    source = stream.get_slice(name)[box] if box else stream.get_tensor(name)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(source)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return os.path.isdir(checkpoint_id)
