"""Retries of a part: an input that kills its worker three times becomes a failed row, and the part goes on without it.

    for uri in part["uris"]:
        try:
            attempts.begin(uri)  # VideoError for an input that has killed its worker three times
            ...
        except VideoError as error:
            ...  # a failed row, like any other
    attempts.begin()             # no input in progress: failures from here on are not attributed to an input

Outside of a job (tests, plain loops) `begin` does nothing. In a job the first attempt at a part has only a timeout per
input; once a worker has died on the part, the key of each input is stored outside the process before work on it starts,
so that the next death can be attributed.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from recaption.errors import RecaptionError, VideoError

Row = TypeVar("Row")
MAX_DEATHS_PER_INPUT = 3
"""With fewer, a kill from outside (a preempted node, the kernel out of memory) could fail a good input."""
MAX_DEATHS_OUTSIDE_INPUTS = 5
"""Worker deaths on one part with no input in progress; includes the first death, which is never attributed."""
MAX_FAILED_INPUTS_WITHOUT_SUCCESS = 4
"""If so many inputs kill their worker before any succeeds, the bug is in the stage, not in the inputs."""
INPUT_TIMEOUT_SECONDS = 6 * 3600.0
"""Timeout per input without `progress`. Decoding has its own limit: 40 h for the longest video that is accepted."""
PROGRESS_SECONDS = 1.0
"""The timer is restarted at most this often: an input may report progress with every few frames."""
SAVE_STATE_SECONDS = 60.0
"""How long storing the state of a timed-out input may take."""


class PartError(RecaptionError):
    """A part that keeps failing although its bad inputs were excluded one by one."""


class PartFaultError(PartError):
    """A part whose inputs all raise exceptions that nobody expected: a bug of the stage."""


@dataclass
class PartState:
    """State of one part that survives worker deaths (JSON-able)."""

    num_attempts: int = 0
    node: str = ""
    """Node of the last attempt: if that node is gone, the failure is not attributed to an input."""
    worker: str = ""
    """Ray's id of the worker process of the last attempt."""
    was_out_of_memory: bool = False
    """The last worker was killed because its node was running out of memory."""
    in_progress: list[str] = field(default_factory=list)
    error: str = ""
    """Exception of the last attempt, if it raised one."""
    timed_out: bool = False
    """The last attempt ended itself after `input_timeout_seconds`."""
    deaths: dict[str, int] = field(default_factory=dict)
    """Keys of the inputs in progress, joined by newlines -> worker deaths while exactly these were in progress."""
    isolated: list[str] = field(default_factory=list)
    """Inputs of a batch that killed its worker: each runs alone from now on."""
    failed_inputs: dict[str, list[str]] = field(default_factory=dict)
    """Input key -> [reason, detail] of its failed row."""
    has_success: bool = False

    def attribute_last_failure(
        self,
        node_is_alive: Callable[[str], bool],
        was_out_of_memory: Callable[[str], bool] = lambda worker: False,
    ) -> None:
        """Attribute the death of the last attempt to the inputs that were in progress.

        Args:
            was_out_of_memory: whether the worker process of this id was killed to free memory.

        Raises:
            PartError: the failure is not caused by single inputs.
        """
        if not self.num_attempts or not node_is_alive(self.node):
            return
        self.was_out_of_memory = not self.error and was_out_of_memory(self.worker)
        in_progress = "\n".join(self.in_progress)
        deaths = self.deaths[in_progress] = self.deaths.get(in_progress, 0) + 1
        if not in_progress:
            if deaths >= MAX_DEATHS_OUTSIDE_INPUTS:
                raise PartError(f"its worker died {deaths} times with no input in progress")
            return
        if deaths < MAX_DEATHS_PER_INPUT and not self.timed_out:
            return
        if len(self.in_progress) > 1:
            self.isolated += self.in_progress
            return
        self.failed_inputs[in_progress] = list(self._failure_reason(deaths))
        if len(self.failed_inputs) >= MAX_FAILED_INPUTS_WITHOUT_SUCCESS and not self.has_success:
            is_bug = self.error and not self.timed_out and not self.error.startswith("MemoryError")
            raise (PartFaultError if is_bug else PartError)(
                f"the first {len(self.failed_inputs)} inputs all killed their worker, the last one with: "
                f"{self.failed_inputs[in_progress][1]}"
            )

    def _failure_reason(self, deaths: int) -> tuple[str, str]:
        if self.timed_out:
            return "decode_timeout", self.error
        if self.error:
            reason = "decode_memory" if self.error.startswith("MemoryError") else "unreadable"
            return reason, f"its worker failed {deaths} times: {self.error}"
        if self.was_out_of_memory:
            return "decode_memory", f"its worker process was killed {deaths} times, the last time to free memory"
        return "unreadable", f"its worker process died {deaths} times on it: it crashed, or was killed"


class Attempt:
    """One attempt at one part, in the worker process."""

    def __init__(
        self,
        state: PartState,
        save: Callable[[dict[str, Any]], None],
        *,
        node: str,
        input_timeout_seconds: float,
        worker: str = "",
    ):
        self.state = state
        self.save = save
        self.input_timeout_seconds = input_timeout_seconds
        self.saves_every_input = state.num_attempts > 0
        self.current: tuple[str, ...] = ()
        self.timer = threading.Timer(input_timeout_seconds, self._on_timeout)
        state.num_attempts += 1
        state.node, state.worker, state.error, state.timed_out = node, worker, "", False
        self._save_in_progress(())
        self._restart_timer()

    def begin(self, *keys: str) -> None:
        """Mark `keys` as in progress and the inputs before them as done."""
        if self.current and not self.state.has_success:
            self.state.has_success = True
        self.current = keys
        for key in keys:
            if key in self.state.failed_inputs:
                self.current = ()
                reason, detail = self.state.failed_inputs[key]
                raise VideoError(reason, detail)
        if self.saves_every_input:
            self._save_in_progress(keys)
        self._restart_timer()

    def progress(self) -> None:
        """The input in progress is not stuck: its timeout starts anew."""
        if time.monotonic() - self.timer_started > PROGRESS_SECONDS:
            self._restart_timer()

    def record_exception(self, error: Exception) -> bool:
        """Store an exception; True if it is attributed to the current input, so that a fresh process may retry the part."""
        if not self.current or isinstance(error, OSError | RecaptionError):
            return False
        self.state.error = f"{type(error).__name__}: {error}"
        self._save_in_progress(self.current)
        return True

    def end(self) -> None:
        self.timer.cancel()
        faulthandler.cancel_dump_traceback_later()

    def _restart_timer(self) -> None:
        self.timer_started = time.monotonic()
        self.timer.cancel()
        self.timer = threading.Timer(self.input_timeout_seconds, self._on_timeout)
        self.timer.daemon = True
        self.timer.start()
        # A watchdog thread in C: it ends the process even if the GIL is never released and no state can be saved.
        faulthandler.dump_traceback_later(self.input_timeout_seconds + SAVE_STATE_SECONDS, exit=True, file=2)

    def _on_timeout(self) -> None:
        self.state.error = f"its worker made no progress for {self.input_timeout_seconds:g} s"
        self.state.timed_out = True
        self._save_in_progress(self.current)
        os._exit(1)

    def _save_in_progress(self, keys: Sequence[str]) -> None:
        self.state.in_progress = list(keys)
        self.save(asdict(self.state))


_current: Attempt | None = None


def set_current(attempt: Attempt | None) -> None:
    """Set the current attempt of this process; None: no job."""
    global _current
    _current = attempt


def begin(*keys: str) -> None:
    """Mark the inputs that come next as in progress; without keys: all inputs of the part are done.

    Raises:
        VideoError: the input killed its worker too often and becomes a failed row.
    """
    if _current is not None:
        _current.begin(*keys)


def progress() -> None:
    """Work on the input in progress goes on: call it in long inputs, whose timeout starts anew."""
    if _current is not None:
        _current.progress()


def batches(rows: Sequence[Row], size: int, key: Callable[[Row], str]) -> Iterator[list[Row]]:
    """Batches of `size` rows; a row whose batch killed its worker before comes alone."""
    isolated = set(_current.state.isolated) if _current is not None else set()
    batch: list[Row] = []
    for row in rows:
        if key(row) in isolated:
            yield [row]
            continue
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
