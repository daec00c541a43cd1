"""Pretend CUDA: tensors that say they are on cuda:0, compute on the CPU and refuse to mix with CPU tensors, as CUDA does.

    with pretend_cuda() as log:
        x = torch.zeros(3, device="cuda")          # x.device == cuda:0
        y = x + torch.ones(3, device="cuda")       # x + torch.ones(3) raises RuntimeError
        with log.recording():
            float(y.sum())
    log.host_syncs                                 # {"test_it.py:7 item": 1}

What it records between `recording()`: copies between the devices that block (not `non_blocking`, or from memory that is not
pinned), and what reads a value back (`.item()`, `.tolist()`, `nonzero`, boolean indexing, a copy to the CPU).

For torch's own code these are CPU tensors whose Python side says "cuda": the backward runs, and `torch.autocast("cuda")` is
the CPU's autocast, whose list of float32 functions is shorter than CUDA's.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MAY_MIX_DEVICES = (
    "aten.copy_", "aten._to_copy", "aten.index.Tensor", "aten.index_put", "aten._index_put_impl_", "aten.set_",
)  # fmt: skip
READS_BACK = {
    "aten._local_scalar_dense.default": "item",
    "aten.nonzero.default": "nonzero",
    "aten.masked_select.default": "masked_select",
    "aten.equal.default": "equal",
    "aten._unique2.default": "unique",
    "aten.unique_dim.default": "unique",
    "aten.repeat_interleave.Tensor": "repeat_interleave",
}
"""Operators that wait for the device, and what they are called in Python."""


class TransferLog:
    """What was copied and read back while recording, as "file:line what" -> times."""

    def __init__(self) -> None:
        self.blocking_copies: Counter[str] = Counter()
        self.host_syncs: Counter[str] = Counter()
        self.num_copies = 0
        """Copies from the CPU to the device, blocking or not."""
        self._depth = 0

    @contextlib.contextmanager
    def recording(self) -> Iterator[TransferLog]:
        self._depth += 1
        try:
            yield self
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose copies and reads do not count: log lines, validation, checkpoints."""
        depth, self._depth = self._depth, 0
        try:
            yield
        finally:
            self._depth = depth

    def copied(self, what: str, *, is_blocking: bool) -> None:
        if self._depth:
            self.num_copies += 1
            if is_blocking:
                self.blocking_copies[f"{_caller()} {what}"] += 1

    def read_back(self, what: str) -> None:
        if self._depth:
            self.host_syncs[f"{_caller()} {what}"] += 1

    def assert_clean(self) -> None:
        """Nothing blocked and nothing was read back, while something was copied."""
        assert not self.blocking_copies, dict(self.blocking_copies)
        assert not self.host_syncs, dict(self.host_syncs)


_log = TransferLog()


def _caller() -> str:
    """file:line of the innermost frame of the repository."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and name != __file__ and "site-packages" not in name:
            return f"{os.path.relpath(name, ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


class PretendTensor(torch.Tensor):
    """A CPU tensor in a wrapper that says it is on cuda:0."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> PretendTensor:
        assert not isinstance(inner, PretendTensor)
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
            requires_grad=inner.requires_grad,
        )
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"pretend_cuda({self.inner!r})"

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        dtype, device, is_async, copy = _parsed_to(args, kwargs)
        moved = self if dtype is None or dtype == self.dtype else torch.Tensor.to(self, dtype)
        if device is None or device.type == "cuda":
            return moved.clone() if copy and moved is self else moved
        return _ToHost.apply(moved, is_async)

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    def tolist(self) -> Any:
        _log.read_back("tolist")
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def pin_memory(self, *args: Any) -> torch.Tensor:
        raise RuntimeError("cannot pin a tensor of the device: only dense CPU tensors can be pinned")


def _parsed_to(args: tuple, kwargs: dict) -> tuple[torch.dtype | None, torch.device | None, bool, bool]:
    """(dtype, device, non_blocking, copy) of the arguments of `Tensor.to`."""
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    rest = []
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, torch.Tensor):
            dtype, device = value.dtype, value.device
        elif isinstance(value, str | torch.device):
            device = value
        elif isinstance(value, bool):
            rest.append(value)
    is_async = kwargs.get("non_blocking", rest[0] if rest else False)
    copy = kwargs.get("copy", rest[1] if len(rest) > 1 else False)
    return dtype, None if device is None else torch.device(device), is_async, copy


class _ToHost(torch.autograd.Function):
    """A copy to the CPU: waits for the device, also with `non_blocking`, before the values can be used."""

    @staticmethod
    def forward(ctx, x, is_async):
        _log.read_back("copy to the CPU")
        return x.inner.clone()

    @staticmethod
    def backward(ctx, grad):
        return _wrap(grad), None


def _wrap(value: Any) -> Any:
    is_plain = isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor)
    return PretendTensor(value) if is_plain else value


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


def _is_pinned(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_is_pretend_pinned", False)


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operator, on the unwrapped tensors; its results are on the pretended device if its inputs were."""
    name = str(func)
    kwargs = dict(kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_device = [x for x in tensors if isinstance(x, PretendTensor)]
    on_host = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim() > 0]
    if name.startswith(
        "aten.cat"
    ):  # autograd makes zeros for parts of a split that were not used, where it believes to be
        on_host = [x for x in on_host if x.any()]
    if on_device and on_host and not name.startswith(MAY_MIX_DEVICES):
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {name} of {[tuple(x.shape) for x in on_device]} on cuda:0 "
            f"with {[tuple(x.shape) for x in on_host]} on cpu at {_caller()}"
        )
    target = kwargs.get("device")
    to_device = target is not None and torch.device(target).type == "cuda"
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    wants_pinned = bool(kwargs.get("pin_memory"))
    if wants_pinned:
        kwargs["pin_memory"] = False
    _record(name, args, kwargs, to_device=to_device, on_device=on_device)
    out = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    if wants_pinned:
        out._is_pretend_pinned = True
    if name.startswith("aten.copy_") or "out" in kwargs:
        return kwargs.get("out", args[0])
    if _is_in_place(func) and args and isinstance(args[0], torch.Tensor):
        return args[0]
    return tree_map(_wrap, out) if to_device or on_device else out


def _is_in_place(func: Any) -> bool:
    return func._schema.name.split("::")[1].endswith("_")


def _record(name: str, args: tuple, kwargs: dict, *, to_device: bool, on_device: list) -> None:
    if name.startswith("aten._to_copy") and to_device and not isinstance(args[0], PretendTensor):
        is_async = bool(kwargs.get("non_blocking")) and (_is_pinned(args[0]) or args[0].numel() == 0)
        _log.copied("to the device", is_blocking=not is_async)
    elif name.startswith("aten.copy_") and isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor):
        is_async = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if isinstance(args[0], PretendTensor):
            if args[1].dim():  # a number that is filled in takes no copy
                _log.copied("copy_ to the device", is_blocking=not (is_async and _is_pinned(args[1])))
        elif not (is_async and _is_pinned(args[0])):
            _log.read_back("copy_ to the CPU")
    elif on_device and name in READS_BACK:
        _log.read_back(READS_BACK[name])
    elif name.startswith(("aten.index.Tensor", "aten.index_put", "aten._index_put_impl_")):
        indices = [x for x in (args[1] or []) if isinstance(x, torch.Tensor)]
        if not isinstance(args[0], PretendTensor):
            if on_device:
                raise RuntimeError(f"indices should be on the CPU, as the indexed tensor is, at {_caller()}")
            return
        if any(not isinstance(x, PretendTensor) for x in indices):
            _log.copied("index from the CPU", is_blocking=True)
        if any(isinstance(x, PretendTensor) and x.dtype in (torch.bool, torch.uint8) for x in indices):
            _log.read_back("boolean index")


class _Pretend(TorchDispatchMode):
    """Makes factory functions with device="cuda", and copies to it, give pretended tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def to_cuda(module: torch.nn.Module) -> torch.nn.Module:
    """Move a module's parameters and buffers, in place, as `Module.to` does."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and not isinstance(parameter, PretendTensor):
                moved = PretendTensor(parameter.detach().contiguous())
                part._parameters[name] = torch.nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and not isinstance(buffer, PretendTensor):
                part._buffers[name] = PretendTensor(buffer)
    return module


class _Properties:
    total_memory = 80 * 10**9
    name = "NVIDIA H100 80GB HBM3"


class _Stream:
    def synchronize(self) -> None:
        _log.read_back("stream synchronize")

    def wait_stream(self, other: Any) -> None:
        pass


@contextlib.contextmanager
def pretend_cuda() -> Iterator[TransferLog]:
    """Context in which device "cuda" exists; yields the log of its copies and reads."""
    global _log
    before, _log = _log, TransferLog()
    torch._C._ensureCUDADeviceGuardSet()  # `.to("cuda")` asks for the current device; without a driver that is an error
    with contextlib.ExitStack() as stack:
        for patch in _patches():
            stack.enter_context(patch)
        stack.enter_context(_Pretend())
        try:
            yield _log
        finally:
            _log = before


def _patches() -> Iterator[Any]:
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: _Properties(),
        "get_device_name": lambda device=None: _Properties.name,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda *args: _Stream(),
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda *args: _log.read_back("synchronize"),
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda *args: 0,
        "reset_peak_memory_stats": lambda *args: None,
    }
    for name, value in cuda.items():
        yield mock.patch.object(torch.cuda, name, value)
    yield mock.patch.object(torch, "tensor", _creating(torch.tensor))
    yield mock.patch.object(torch, "as_tensor", _creating(torch.as_tensor))
    yield mock.patch.object(torch.Tensor, "pin_memory", _pin_memory)
    yield mock.patch.object(torch.Tensor, "is_pinned", lambda tensor, *args: _is_pinned(tensor))
    yield mock.patch.object(torch.nn.Module, "to", _module_to(torch.nn.Module.to))
    yield mock.patch.object(torch, "autocast", _autocast(torch.autocast))
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        yield mock.patch.object(torch, name, _of_cpu(getattr(torch, name)))
    yield mock.patch.object(torch, "inference_mode", _inference_mode)
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):
            yield mock.patch.object(torch.optim.Optimizer, name)
    yield mock.patch.object(
        torch.optim.Optimizer,
        "_group_tensors_by_device_and_dtype",
        staticmethod(_grouped(torch.optim.Optimizer._group_tensors_by_device_and_dtype)),
    )


@contextlib.contextmanager
def _inference_mode(mode: bool = True) -> Iterator[None]:
    """torch.inference_mode without its tensors, which a wrapper cannot hold."""
    with torch.no_grad() if mode else contextlib.nullcontext():
        yield


def _creating(create: Callable) -> Callable:
    def created(data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, PretendTensor):
            return data if dtype is None else data.to(dtype)
        tensor = create(data, dtype=dtype, **kwargs)
        is_moved = device is not None and torch.device(device).type == "cuda"
        return tensor.to("cuda") if is_moved else tensor

    return created


def _pin_memory(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
    pinned = tensor.clone()
    pinned._is_pretend_pinned = True
    return pinned


def _module_to(to: Callable) -> Callable:
    def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        dtype, device, _, _ = _parsed_to(args, kwargs)
        if device is None or device.type != "cuda":
            return to(module, *args, **kwargs)
        to_cuda(module)
        return module if dtype is None else to(module, dtype)

    return moved


def _autocast(autocast: Callable) -> Callable:
    return lambda device_type, *args, **kwargs: autocast("cpu", *args, **kwargs)


def _of_cpu(function: Callable) -> Callable:
    return lambda device_type="cpu": function("cpu")


def _grouped(group: Callable) -> Callable:
    """The optimizer's lists by (device, dtype), with the device that the tensors say they are on."""

    def grouped(lists: list, with_indices: bool = False) -> dict:
        first = next((x for tensors in lists for x in tensors if x is not None), None)
        groups = group(lists, with_indices)
        if isinstance(first, PretendTensor):
            groups = {(CUDA, dtype): value for (_, dtype), value in groups.items()}
        return groups

    return grouped
