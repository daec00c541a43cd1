"""Control messages between ranks (over gloo), and SIGTERM/Ctrl-C as a flag that the training loop polls."""

from __future__ import annotations

import signal
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from train.parallel.process_group import DEFAULT_TIMEOUT_MINUTES, logger, num_ranks

MAX_WAIT_HOURS = 24.0
"""How long ranks wait for what rank 0 does alone. A rank that dies closes its connections, which ends the wait at once."""


class ControlGroup:
    """A gloo group of all ranks for control messages, so that no GPU is synchronised for them.

    A second group has a longer timeout: while rank 0 validates or samples, the others wait there, and not in a collective
    whose timeout is meant for ranks that hang.
    """

    def __init__(self, *, timeout_minutes: float = DEFAULT_TIMEOUT_MINUTES) -> None:
        self.timeout_seconds = 60 * timeout_minutes
        self.group = new_cpu_group(timeout_minutes)
        self._long_group = new_cpu_group(max(timeout_minutes, 60 * MAX_WAIT_HOURS))

    def any(self, flag: bool) -> bool:
        """Logical or over all ranks."""
        return self._any(flag, self.group)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank; picklable."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def wait_for_main(self, seconds: float = 0.0) -> None:
        """Wait until rank 0, which does something alone, is here too; up to `MAX_WAIT_HOURS`.

        Args:
            seconds: that rank 0 took; it says so where that is longer than a collective may wait.
        """
        if self.group is not None and seconds > self.timeout_seconds:
            logger.warning(
                "rank 0 validated and sampled for %.0f minutes while %d ranks waited; validate less often, or with fewer "
                "samples", seconds / 60, num_ranks() - 1,
            )  # fmt: skip
        self._any(False, self._long_group)

    def _any(self, flag: bool, group: dist.ProcessGroup | None) -> bool:
        if group is None:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=group)
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


def new_cpu_group(timeout_minutes: float) -> dist.ProcessGroup | None:
    """A gloo group of all ranks, None for a single one; all ranks make their groups in the same order."""
    if num_ranks() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))


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
