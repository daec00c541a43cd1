"""Wall-clock time of training steps and the part of it spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepTimer:
    """Seconds spent in training steps, accumulated over resumes; validation and saving are excluded."""

    def __init__(self) -> None:
        self._total = 0.0
        self._started_at: float | None = None
        self._data_wait = 0.0
        self.window_start = 0.0
        """Value of `seconds()` when the current log window began."""

    def start(self) -> None:
        self._started_at = time.perf_counter()

    def seconds(self) -> float:
        return self._total + (time.perf_counter() - self._started_at if self._started_at is not None else 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._total, self._started_at = self.seconds(), None
        yield
        self.start()

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Context whose duration counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._data_wait += time.perf_counter() - start

    def end_window(self) -> tuple[float, float]:
        """(seconds of the log window, seconds of it spent waiting for data); starts the next window."""
        now = self.seconds()
        seconds, data_wait = now - self.window_start, self._data_wait
        self.window_start, self._data_wait = now, 0.0
        return seconds, data_wait

    def state_dict(self) -> dict[str, float]:
        return {"total": self.seconds(), "window_start": self.window_start, "data_wait": self._data_wait}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._total, self.window_start, self._data_wait = state["total"], state["window_start"], state["data_wait"]
