"""The lock of a folder: one command at a time, stale locks are taken over, nothing stays behind."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from recaption import folder_lock
from recaption.errors import FolderInUseError, StorageError, UsageError
from recaption.folder_lock import RUN_LOCK, STALE_SECONDS, FolderLock, Owner
from recaption.run_folder import RunFolder


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    if request.param == "local":
        yield RunFolder(str(tmp_path / "run"))
        return
    run = RunFolder(f"memory://lock-{tmp_path.name}")
    yield run
    run.fs.rm(run.root, recursive=True) if run.fs.exists(run.root) else None


def leave_lock(run, owner):
    run.write_bytes(RUN_LOCK, json.dumps(asdict(owner)).encode())


def lock_of_ended_process(run):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = replace(Owner.here("recaption prepare"), pid=ended.pid, pid_started="1")
    leave_lock(run, owner)
    return owner


def test_the_second_command_is_told_who_works_there(run):
    with FolderLock(run, "recaption caption"):
        with pytest.raises(FolderInUseError) as caught, FolderLock(run, "recaption shard"):
            pass
        message = str(caught.value)
    assert isinstance(caught.value, UsageError)
    assert "\n" not in message
    assert message.startswith(f"{run.uri}: `recaption caption` (since 20")
    assert f"process {os.getpid()}) works on it: wait until it ends" in message
    with FolderLock(run, "recaption shard") as lock:  # after the first has ended
        assert lock.taken_over is None
    assert not run.exists(RUN_LOCK)


def test_the_lock_of_a_killed_command_is_taken_over_at_once(run, monkeypatch):
    monkeypatch.setattr(folder_lock, "SETTLE_SECONDS", 0.0)
    owner = lock_of_ended_process(run)
    with FolderLock(run, "recaption shard") as lock:
        assert lock.taken_over == owner
        lock.check()
    assert not run.exists(RUN_LOCK)


def test_a_process_id_that_is_used_again_is_another_process(tmp_path):
    run = RunFolder(str(tmp_path))
    leave_lock(run, replace(Owner.here("recaption prepare"), pid=os.getppid(), pid_started="7"))
    with FolderLock(run, "recaption shard") as lock:
        assert lock.taken_over.pid == os.getppid()


def test_a_lock_left_by_an_earlier_command_of_this_process_is_stale(tmp_path):
    """As after a storage failure, where the lock could not be removed."""
    run = RunFolder(str(tmp_path))
    leave_lock(run, Owner.here("recaption prepare"))
    with FolderLock(run, "recaption shard") as lock:
        assert lock.taken_over.command == "recaption prepare"


def test_the_lock_of_another_host_counts_while_it_shows_signs_of_life(tmp_path):
    run = RunFolder(str(tmp_path))
    leave_lock(run, replace(Owner.here("recaption prepare"), host="node-7", machine="another boot"))
    with (
        pytest.raises(FolderInUseError, match=r"host node-7.*sign of life \d s ago"),
        FolderLock(run, "recaption shard"),
    ):
        pass
    long_ago = time.time() - STALE_SECONDS - 5
    os.utime(run.path(RUN_LOCK), (long_ago, long_ago))
    with FolderLock(run, "recaption shard") as lock:
        assert lock.taken_over.host == "node-7"


def test_a_holder_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.02)
    run = RunFolder(str(tmp_path))
    with FolderLock(run, "recaption prepare"):
        os.utime(run.path(RUN_LOCK), (1, 1))
        deadline = time.monotonic() + 10
        while os.stat(run.path(RUN_LOCK)).st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_that_is_not_one_counts_as_that_of_an_unknown_command(tmp_path):
    run = RunFolder(str(tmp_path))
    run.write_bytes(RUN_LOCK, b'{"half')
    with pytest.raises(FolderInUseError, match="unknown"), FolderLock(run, "recaption shard"):
        pass


def test_one_of_many_gets_a_stale_lock(tmp_path):
    """Without the lock on the folder, one could remove the new lock of another as the stale one."""
    run = RunFolder(str(tmp_path))
    lock_of_ended_process(run)
    outcomes, barrier, done = [], threading.Barrier(8), threading.Event()

    def take():
        barrier.wait()
        try:
            with FolderLock(RunFolder(run.uri), "recaption shard"):
                outcomes.append("got it")
                done.wait(20)
        except FolderInUseError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(outcomes) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["got it"] + ["refused"] * 7


def work_and_lose_the_folder(run, error=None):
    with FolderLock(run, "recaption prepare"):
        shutil.rmtree(run.root)
        run.write_bytes("videos/part-00000.parquet", b"x")  # a worker makes the folder again
        if error is not None:
            raise error


def test_a_folder_that_was_removed_meanwhile_is_one_sentence(tmp_path):
    with pytest.raises(StorageError, match="was removed while `recaption prepare` worked on it"):
        work_and_lose_the_folder(RunFolder(str(tmp_path / "run")))


def test_the_first_error_is_the_one_that_is_reported(tmp_path):
    with pytest.raises(ZeroDivisionError):
        work_and_lose_the_folder(RunFolder(str(tmp_path / "run")), ZeroDivisionError())


def test_a_folder_without_results_is_not_left_behind(tmp_path):
    with FolderLock(RunFolder(str(tmp_path / "a/b/run")), "recaption prepare"):
        assert (tmp_path / "a/b/run" / RUN_LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "run").write_bytes(b"a file")
    with (
        pytest.raises(StorageError, match=r"run\.lock cannot be written"),
        FolderLock(RunFolder(str(tmp_path / "run")), "recaption prepare"),
    ):
        pass
