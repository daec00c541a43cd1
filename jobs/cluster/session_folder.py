"""The private folder of the local Ray: its sessions, logs, sockets and token, for nobody else to read, removed at the end.

    folder = SessionFolder()          # UsageError: no folder for temporary files
    ray.init(_temp_dir=folder.sessions, ...)       # with folder.environment
    folder.remove()

Ray makes its folders 0777 and its token 0644, as there may be other users of a cluster; here there are none. Its processes
listen on ports of all interfaces, whatever address they are given, so the token is what keeps others out. Folders that a
killed command left are removed by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from recaption.errors import UsageError
from recaption.folder_lock import Owner

PREFIX = "recaption-ray-"
OWNER_FILE = "owner.json"
MAX_PATH_CHARACTERS = 40
"""A socket's path has at most 107; Ray appends `/session_2026-11-30_04-23-17_108162_1234567/sockets/plasma_store`."""
MIN_FREE_BYTES = 16 << 20
"""A session of a few minutes writes about 1 MB of logs; a full disk ends Ray with a stack trace."""
REMOVE_SECONDS = 10.0
"""How long processes that are ending may still write into the folder."""
_token = secrets.token_hex(32)
"""One per process: Ray reads it once."""


class SessionFolder:
    """A folder that only this user can enter."""

    def __init__(self) -> None:
        """
        Raises:
            UsageError: the folder for temporary files cannot be written, or is full.
        """
        parent = _parent()
        remove_stale(parent)
        self.path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)  # 0700
        self.sessions = os.path.join(self.path, "r")  # Ray makes it 0777
        try:
            Path(self.path, OWNER_FILE).write_text(json.dumps(asdict(Owner.here("recaption"))))
            self.token_file = os.path.join(self.path, "token")
            with open(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(_token)
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise _unusable(parent, error.strerror) from error

    @property
    def environment(self) -> dict[str, str]:
        """What Ray reads: calls without the token are refused."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token, "RAY_AUTH_TOKEN_PATH": self.token_file}

    def remove(self) -> None:
        deadline = time.monotonic() + REMOVE_SECONDS
        while os.path.exists(self.path):
            shutil.rmtree(self.path, ignore_errors=True)
            if time.monotonic() > deadline:
                return  # the next command tries again
            time.sleep(0.05)


def _parent() -> str:
    """TMPDIR where it is set and short enough for sockets, else the system's folder for temporary files."""
    wanted = os.environ.get("TMPDIR") or "/tmp"
    _check_writable(wanted)  # this command and its workers write there as well
    if len(os.path.abspath(wanted)) + len(f"/{PREFIX}12345678/r") <= MAX_PATH_CHARACTERS:
        return os.path.abspath(wanted)
    _check_writable("/tmp")
    return "/tmp"


def _check_writable(folder: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
        status = os.statvfs(folder)
    except OSError as error:
        raise _unusable(folder, error.strerror) from error
    if status.f_bavail * status.f_frsize < MIN_FREE_BYTES:
        raise _unusable(folder, f"it has less than {MIN_FREE_BYTES >> 20} MiB of free space")


def _unusable(folder: str, why: str | None) -> UsageError:
    return UsageError(f"the folder for temporary files, {folder}, cannot be used: {why}; set TMPDIR to another one")


def remove_stale(parent: str) -> None:
    """Remove the folders of this user's commands that have ended without doing so."""
    for path in Path(parent).glob(PREFIX + "*"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            owner = Owner(**json.loads((path / OWNER_FILE).read_text()))
            if owner.is_here() and not (owner.pid == os.getpid() or owner.is_running()):
                shutil.rmtree(path, ignore_errors=True)
