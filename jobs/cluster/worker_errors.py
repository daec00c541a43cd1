"""Errors of workers, serialised and turned into one error message for the user."""

from __future__ import annotations

import socket
import traceback

from recaption import errors
from recaption.errors import RecaptionError, UsageError

REACHABLE_SECONDS = 10.0
"""Timeout of the connection test."""


class WorkerError(RecaptionError):
    """A worker died or raised; finished parts are safe, run the same command again."""


class WorkerFaultError(WorkerError):
    """A worker raised what nobody expected: a bug, exit code 70."""


def check_reachable(address: str) -> None:
    """Raise UsageError if nothing listens at `address`; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # `auto`, `local`: Ray resolves these itself, without a delay
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray cluster at --address {address}: {error}") from error


def error_fields(error: Exception) -> dict[str, str]:
    """Class name, message and the last three traceback entries of an exception."""
    where = "".join(traceback.format_exception(error, limit=-3))
    return {"kind": type(error).__name__, "text": str(error), "where": where}


def user_facing_error(title: str, *, kind: str, text: str, where: str) -> RecaptionError:
    """The error to raise in the driver: UsageErrors unchanged, other RecaptionErrors as a sentence, bugs with traceback."""
    cls = WorkerError if kind == WorkerError.__name__ else getattr(errors, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, RecaptionError)):
        return WorkerFaultError(f"{title}: a worker failed: {kind}: {text}; finished parts are safe\n{where}")
    if issubclass(cls, UsageError):
        return cls(text)
    return WorkerError(f"{title}: a worker failed: {text}; finished parts are safe, run the same command again")
