"""What a part has cost so far: the input its worker died on, and how often. Then the part goes on without that input.

    for uri in part["uris"]:
        try:
            attempts.begin(uri)  # VideoError for an input that has ended its worker three times
            ...
        except VideoError as error:
            ...  # a failed row, like any other
    attempts.begin()             # no input any more: what fails from here on is nobody's fault

Outside of a job (tests, plain loops) `begin` does nothing. In a job the first attempt at a part is watched by a clock
only; once a worker has died on the part, each input is noted outside the process before work on it starts, so that the
next death has a name.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from recaption.errors import RecaptionError, VideoError

Row = TypeVar("Row")


DEATHS_PER_INPUT = 3
"""Below three a kill from outside (a node that is taken away, the kernel short of memory) could cost an input its row."""


DEATHS_OUTSIDE_INPUTS = 5
"""Deaths of one part on no input in particular, the first one, which nobody could note, among them."""


POISON_BEFORE_ANY_SUCCESS = 4
"""As many inputs that each end their worker, and none that does not: the fault is in the stage, not in the inputs."""


STUCK_SECONDS = 6 * 3600.0
"""An input without an end. Decoding has its own, tighter limit: 4 h for the longest video that is let in."""


NOTE_SECONDS = 60.0
"""How long the note about a stuck input may take."""


class PartError(RecaptionError):
    """A part that cannot be done although its inputs were given up one by one."""


@dataclass
class Record:
    """What outlives the process. JSON-able."""

    num_attempts: int = 0
    node: str = ""
    """Where the last attempt ran: a node that is gone says nothing about the input."""
    in_progress: list[str] = field(default_factory=list)
    error: str = ""
    """What the last attempt raised, where it raised."""
    was_stuck: bool = False
    """The last attempt ended itself because its input did not end."""
    deaths: dict[str, int] = field(default_factory=dict)
    """Inputs in progress, joined by newlines -> deaths on exactly these."""
    alone: list[str] = field(default_factory=list)
    """A batch of these ended its worker: from now on each is a batch of its own."""
    given_up: dict[str, list[str]] = field(default_factory=dict)
    """Input -> reason and detail of its failed row."""
    has_success: bool = False

    def account_for_last_attempt(self, node_is_alive: Callable[[str], bool]) -> None:
        """Blame the inputs that were in progress when the last attempt ended.

        Raises:
            PartError: it is not the inputs' fault.
        """
        if not self.num_attempts or not node_is_alive(self.node):
            return
        blamed = "\n".join(self.in_progress)
        deaths = self.deaths[blamed] = self.deaths.get(blamed, 0) + 1
        if not blamed:
            if deaths >= DEATHS_OUTSIDE_INPUTS:
                raise PartError(f"its worker died {deaths} times, on no input in particular")
            return
        if deaths < DEATHS_PER_INPUT and not self.was_stuck:
            return
        if len(self.in_progress) > 1:
            self.alone += self.in_progress
            return
        self.given_up[blamed] = list(self._verdict(deaths))
        if len(self.given_up) >= POISON_BEFORE_ANY_SUCCESS and not self.has_success:
            raise PartError(
                f"{len(self.given_up)} inputs in a row ended their worker and none did not, the last one: "
                f"{self.given_up[blamed][1]}"
            )

    def _verdict(self, deaths: int) -> tuple[str, str]:
        if self.was_stuck:
            return "decode_timeout", self.error
        if self.error:
            reason = "decode_memory" if self.error.startswith("MemoryError") else "unreadable"
            return reason, f"its worker failed {deaths} times: {self.error}"
        return "unreadable", f"its worker process died {deaths} times on it"


class Attempt:
    """One go at one part, in the worker's process."""

    def __init__(self, record: Record, save: Callable[[dict[str, Any]], None], *, node: str, stuck_seconds: float):
        self.record = record
        self.save = save
        self.stuck_seconds = stuck_seconds
        self.is_watched = record.num_attempts > 0
        self.current: tuple[str, ...] = ()
        self.clock = threading.Timer(stuck_seconds, self._stuck)
        record.num_attempts += 1
        record.node, record.error, record.was_stuck = node, "", False
        self._note(())
        self._wind_the_clock()

    def begin(self, *keys: str) -> None:
        """`keys` are in progress from here on, and whatever was before is well."""
        if self.current and not self.record.has_success:
            self.record.has_success = True
        self.current = keys
        for key in keys:
            if key in self.record.given_up:
                self.current = ()
                reason, detail = self.record.given_up[key]
                raise VideoError(reason, detail)
        if self.is_watched:
            self._note(keys)
        self._wind_the_clock()

    def raised(self, error: Exception) -> bool:
        """Note an exception; whether it is an input's, so that a fresh process may go on with the part."""
        if not self.current or isinstance(error, OSError | RecaptionError):
            return False
        self.record.error = f"{type(error).__name__}: {error}"
        self._note(self.current)
        return True

    def end(self) -> None:
        self.clock.cancel()
        faulthandler.cancel_dump_traceback_later()

    def _wind_the_clock(self) -> None:
        self.clock.cancel()
        self.clock = threading.Timer(self.stuck_seconds, self._stuck)
        self.clock.daemon = True
        self.clock.start()
        # A thread in C: it ends the process even where code holds the interpreter for ever and nothing can be noted.
        faulthandler.dump_traceback_later(self.stuck_seconds + NOTE_SECONDS, exit=True, file=2)

    def _stuck(self) -> None:
        self.record.error = f"its worker made no progress for {self.stuck_seconds:g} s"
        self.record.was_stuck = True
        self._note(self.current)
        os._exit(1)

    def _note(self, keys: Sequence[str]) -> None:
        self.record.in_progress = list(keys)
        self.save(asdict(self.record))


_current: Attempt | None = None


def start(attempt: Attempt | None) -> None:
    """Make `attempt` the one that `begin` speaks of in this process."""
    global _current
    _current = attempt


def begin(*keys: str) -> None:
    """Say which inputs come next; none: all are through.

    Raises:
        VideoError: the input ended its worker too often and becomes a failed row.
    """
    if _current is not None:
        _current.begin(*keys)


def batches(rows: Sequence[Row], size: int, key: Callable[[Row], str]) -> Iterator[list[Row]]:
    """Rows in batches of `size`; a row that may have ended its worker as one of a batch comes alone."""
    alone = set(_current.record.alone) if _current is not None else set()
    batch: list[Row] = []
    for row in rows:
        if key(row) in alone:
            yield [row]
            continue
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
