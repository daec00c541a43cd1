"""The lock of a folder: one command at a time writes there, and the next one is told who does.

    with FolderLock(RunFolder("runs/a"), "recaption caption") as lock:      # FolderInUseError: somebody works there
        ...
        lock.check()                                    # StorageError: the folder was removed meanwhile

RUN/run.lock says host, process, command and start, and is removed at the end. On the same host (boot and process namespace
included) a lock counts while its process runs; a killed command's lock is taken over at once. The lock of another host
counts while it shows signs of life: it is touched every `HEARTBEAT_SECONDS`, and taken over `STALE_SECONDS` after the last.

Local folders: exactly one of several commands gets the lock. Object stores: as well where the store can create a file
only if it does not exist (s3, gs, memory); taking over a stale lock is a plain write there, read back after a moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from recaption.errors import FolderInUseError, StorageError
from recaption.run_folder import TEMPORARY_SUFFIX, RunFolder

RUN_LOCK = "run.lock"
HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
"""How long after its last sign of life the lock of another host counts."""
SETTLE_SECONDS = 1.0
"""After a stale lock on an object store was overwritten: another command may have done the same in this time."""
_held: set[str] = set()
"""Tokens of the locks that this process holds: others with its process id are left from earlier commands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Who works on a folder: the content of the lock file."""

    command: str
    host: str
    machine: str
    """Boot id and process namespace: process ids mean something only within them."""
    pid: int
    pid_started: str
    """Start of the process in clock ticks since boot: process ids are used again."""
    started: str
    """Local time of the start of the command, with the zone's offset."""
    token: str
    """Random: differs for every command."""

    @classmethod
    def here(cls, command: str) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(
            command=command,
            host=socket.gethostname(),
            machine=_machine(),
            pid=pid,
            pid_started=_start_of(pid) or "",
            started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            token=uuid.uuid4().hex,
        )

    def is_here(self) -> bool:
        return self.host == socket.gethostname() and self.machine == _machine()

    def is_running(self) -> bool:
        """Whether its process runs; only for one that `is_here`."""
        if self.pid == os.getpid():
            return self.token in _held
        started = _start_of(self.pid)
        return started is not None and started == self.pid_started

    def __str__(self) -> str:
        return f"`{self.command}` (since {self.started}, host {self.host}, process {self.pid})"


def _machine() -> str:
    parts = []
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """When a process was started; "" where the system does not say; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
    except OSError:
        return None
    with contextlib.suppress(PermissionError):  # of somebody else, and so there
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
    return ""


class FolderLock:
    """Context manager: holds the lock of a folder.

    Args:
        folder: created where it does not exist, and removed at the end if nothing was written into it.
        command: what the next one is told, such as `recaption caption`; no secrets.

    Raises:
        FolderInUseError: somebody works on the folder.
        StorageError: the lock cannot be written; at the end: the folder was removed meanwhile.
    """

    def __init__(self, folder: RunFolder, command: str, *, name: str = RUN_LOCK) -> None:
        self.folder = folder
        self.name = name
        self.owner = Owner.here(command)
        self.taken_over: Owner | None = None
        """The owner of a stale lock, whose command did not come to its end."""
        self._payload = json.dumps(asdict(self.owner), indent=1).encode()
        self._made: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show_signs_of_life, name="folder lock", daemon=True)

    def __enter__(self) -> FolderLock:
        if self.folder.is_local:
            self._take_local()
        else:
            self._take_remote()
        _held.add(self.owner.token)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        _held.discard(self.owner.token)
        try:
            if error is None:
                self.check()
        finally:
            with contextlib.suppress(
                OSError, ValueError
            ):  # where the storage is gone, the first error is the one to report
                found = self._read()
                if found is not None and found.token == self.owner.token:
                    self.folder.fs.rm(self.folder.path(self.name))
            for made in reversed(self._made):
                with contextlib.suppress(OSError):
                    os.rmdir(made)

    def check(self) -> None:
        """Raise StorageError if the lock is not there any more."""
        found = self._read()
        if found is None or found.token != self.owner.token:
            by = f"taken over by {found}" if found else "removed"
            raise StorageError(
                f"{self.folder.uri} was {by} while `{self.owner.command}` worked on it: what it wrote may be lost, "
                "run the same command again"
            )

    # --- taking it ----------------------------------------------------------------------------------------------------

    def _take_local(self) -> None:
        folder = os.path.dirname(self.folder.path(self.name))
        path, temporary = self.folder.path(self.name), self.folder.path(f"{self.name}.{self.owner.token[:8]}")
        temporary += TEMPORARY_SUFFIX
        try:
            self._make_folder(folder)
            with _alone_in(folder):
                with open(temporary, "wb") as file:
                    file.write(self._payload)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    # The clock of the storage, not that of this host, says how old the other one's last sign of life is.
                    self._refuse_or_take_over(lambda: os.stat(temporary).st_mtime - os.stat(path).st_mtime)
                    os.replace(temporary, path)
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(temporary)
        except (StorageError, FolderInUseError):
            raise
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error

    def _make_folder(self, path: str) -> None:
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for name in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name)
                self._made.append(name)

    def _take_remote(self) -> None:
        path = self.folder.path(self.name)
        try:
            self.folder.fs.pipe_file(path, self._payload, mode="create")
            return
        except FileExistsError:
            pass
        except (TypeError, ValueError, NotImplementedError):  # a store that cannot create exclusively
            if not self.folder.exists(self.name):
                self.folder.write_bytes(self.name, self._payload)
                return
        except Exception as error:  # botocore, aiohttp, gcsfs and the kernel have no common base class
            raise StorageError(f"{path} cannot be written: {error}") from error
        self._refuse_or_take_over(self._remote_age_seconds)
        self.folder.write_bytes(self.name, self._payload)
        time.sleep(SETTLE_SECONDS)
        self._refuse_or_take_over(lambda: 0.0)

    def _remote_age_seconds(self) -> float:
        return time.time() - self.folder.fs.modified(self.folder.path(self.name)).timestamp()

    def _refuse_or_take_over(self, age_seconds: Any) -> None:
        found = self._read()
        if found is None or found.token == self.owner.token:
            return
        if found.is_here():
            if not found.is_running():
                self.taken_over = found
                return
            raise FolderInUseError(f"{self.folder.uri}: {found} works on it: wait until it ends")
        age = age_seconds()
        if age > STALE_SECONDS:
            self.taken_over = found
            return
        raise FolderInUseError(
            f"{self.folder.uri}: {found} works on it, and showed a sign of life {max(0, age):.0f} s ago: wait until it ends "
            f"(without signs of life it is taken over after {STALE_SECONDS:.0f} s)"
        )

    def _read(self) -> Owner | None:
        try:
            return Owner(**json.loads(self.folder.read_bytes(self.name)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # not written by this program, or cut
            unknown = dict.fromkeys(("machine", "pid_started", "token"), "")
            return Owner(command="unknown", host="unknown", pid=0, started="unknown", **unknown)

    def _show_signs_of_life(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(Exception):  # a storage that is gone for a while
                found = self._read()
                if found is None or found.token != self.owner.token:
                    return
                if self.folder.is_local:
                    os.utime(self.folder.path(self.name))
                else:
                    self.folder.fs.pipe_file(self.folder.path(self.name), self._payload)


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Held while a lock is looked at and written; where the file system cannot lock folders, only the rename is atomic."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
