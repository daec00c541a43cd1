"""What goes wrong on a worker, and how it is said where the command was typed."""

from __future__ import annotations

import socket
import traceback

from recaption import errors
from recaption.errors import RecaptionError, UsageError

REACHABLE_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""


class WorkerError(RecaptionError):
    """A worker died or raised: finished parts are safe, run the same command again."""


def check_reachable(address: str) -> None:
    """Ray itself tries for minutes, with warnings; a wrong address is one sentence here."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # `auto`, `local`: Ray's own words, which it answers at once
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray cluster answers at --address {address}: {error}") from error


def described(error: Exception) -> dict[str, str]:
    where = "".join(traceback.format_exception(error, limit=-3))
    return {"kind": type(error).__name__, "text": str(error), "where": where}


def error_of_worker(title: str, *, kind: str, text: str, where: str) -> RecaptionError:
    """A user's mistake comes back as what it is; what was raised on purpose is one sentence; a bug shows its lines."""
    cls = WorkerError if kind == WorkerError.__name__ else getattr(errors, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, RecaptionError)):
        return WorkerError(f"{title}: a worker failed: {kind}: {text}; finished parts are safe\n{where}")
    if issubclass(cls, UsageError):
        return cls(text)
    return WorkerError(f"{title}: a worker failed: {text}; finished parts are safe, run the same command again")
