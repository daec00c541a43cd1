"""The private folder of the local Ray."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs.cluster.session_folder import MAX_PATH_CHARACTERS, PREFIX, SessionFolder
from recaption.errors import UsageError
from recaption.folder_lock import Owner


@pytest.fixture
def short_folder(monkeypatch):
    """A folder whose path is short enough for sockets."""
    import shutil
    import tempfile

    path = tempfile.mkdtemp(prefix="r", dir="/tmp")
    monkeypatch.setenv("TMPDIR", path)
    yield Path(path)
    shutil.rmtree(path)


def test_nobody_else_can_enter_it(short_folder):
    folder = SessionFolder()
    assert Path(folder.path).parent == short_folder
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    assert os.stat(folder.token_file).st_mode & 0o777 == 0o600
    assert Path(folder.token_file).read_text() == folder.environment["RAY_AUTH_TOKEN"]
    assert len(folder.sessions) <= MAX_PATH_CHARACTERS
    folder.remove()
    assert list(short_folder.iterdir()) == []


def test_folders_of_killed_commands_are_removed_by_the_next(short_folder):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = Owner.here("recaption")
    owners = {
        "killed": replace(here, pid=ended.pid, pid_started="1"),
        "running": replace(here, pid=os.getppid(), pid_started=start_of(os.getppid())),
        "elsewhere": replace(here, host="node-7", pid=ended.pid),
    }
    for name, owner in owners.items():
        (short_folder / f"{PREFIX}{name}").mkdir()
        (short_folder / f"{PREFIX}{name}" / "owner.json").write_text(json.dumps(asdict(owner)))
    (short_folder / f"{PREFIX}foreign").mkdir()
    SessionFolder().remove()
    assert sorted(path.name for path in short_folder.iterdir()) == [
        f"{PREFIX}{n}" for n in ("elsewhere", "foreign", "running")
    ]


def start_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_long_temporary_folder_is_not_used_for_sockets(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 10)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    folder = SessionFolder()
    assert len(folder.sessions) <= MAX_PATH_CHARACTERS
    folder.remove()


@pytest.mark.parametrize("fault", ["missing", "a file", "full"])
def test_a_temporary_folder_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch, fault):
    folder = tmp_path / "tmp"
    if fault == "a file":
        folder.write_bytes(b"")
    elif fault == "full":
        folder.mkdir()
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([4096, 4096, 100, 5, 5, 9, 9, 9, 0, 255]))
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(UsageError, match=rf"{folder}, cannot be used: .*; set TMPDIR to another one"):
        SessionFolder()
