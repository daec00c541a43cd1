"""Control messages between ranks (over gloo), and SIGTERM/Ctrl-C as a flag that the training loop polls."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

from train.parallel.process_group import logger, num_ranks


class ControlGroup:
    """A gloo group of all ranks for control messages, so that no GPU is synchronised for them."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if num_ranks() > 1 else None

    def any(self, flag: bool) -> bool:
        """Logical or over all ranks."""
        if self.group is None:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flags.item())

    def gather(self, value: object) -> list[object]:
        """All-gather picklable objects, in rank order."""
        if self.group is None:
            return [value]
        gathered: list[object] = [None] * num_ranks()
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def wait(self) -> None:
        """Barrier over all ranks."""
        self.any(False)


class StopSignals:
    """Context in which SIGTERM and the first Ctrl-C only set `signal`, for the loop to read between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._record)
        return self

    def _record(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, self._previous[number])  # a second signal stops at once
        logger.warning("stopping after this step and a checkpoint; send the signal again to stop at once")

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_signal(self) -> None:
        """Exit as the signal would have; SIGTERM's exit on ranks that did not receive one."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)
