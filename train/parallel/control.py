"""Agreement of all ranks on when to stop, and the signals that ask for it."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
import torch.distributed as dist

from train.parallel.process_group import logger, num_ranks


class Agreement:
    """Yes/no questions that every rank must answer alike, over a CPU group so that no GPU is waited for."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if num_ranks() > 1 else None

    def any(self, mine: bool) -> bool:
        """True on every rank if true on one."""
        if self.group is None:
            return mine
        flag = torch.tensor([int(mine)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())

    def gather(self, mine: object) -> list[object]:
        """What each rank passed, in rank order, on every rank."""
        if self.group is None:
            return [mine]
        gathered: list[object] = [None] * num_ranks()
        dist.all_gather_object(gathered, mine, group=self.group)
        return gathered

    def wait(self) -> None:
        """Return when every rank is here."""
        self.any(False)


class StopSignals:
    """While open, SIGTERM and the first Ctrl-C only leave a note; the loop reads it between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(number, self._previous[number])  # asked a second time: stop at once
        logger.warning("told to stop: the step is finished and a checkpoint written first")

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def leave(self) -> None:
        """End the program the way that the signal asked for; also on ranks that did not get it."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)
