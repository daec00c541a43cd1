"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Seconds spent in steps, earlier calls included; what goes to validation and saving is left out."""

    def __init__(self) -> None:
        self._total = 0.0
        self._since: float | None = None
        self._waited = 0.0
        self.window_start = 0.0
        """What `seconds()` said when the window under way began."""

    def start(self) -> None:
        self._since = time.perf_counter()

    def seconds(self) -> float:
        return self._total + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._total, self._since = self.seconds(), None
        yield
        self.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is time in which the data was not there yet."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def end_window(self) -> tuple[float, float]:
        """Seconds of the window and how many of them were spent waiting for data; the next window starts."""
        now = self.seconds()
        seconds, waited = now - self.window_start, self._waited
        self.window_start, self._waited = now, 0.0
        return seconds, waited

    def state_dict(self) -> dict[str, float]:
        return {"total": self.seconds(), "window_start": self.window_start, "waited": self._waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._total, self.window_start, self._waited = state["total"], state["window_start"], state["waited"]
