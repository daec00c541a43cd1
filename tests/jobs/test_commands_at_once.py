"""Two commands on one run folder: the second ends with a sentence; those that only read do not care."""

import pytest

from recaption.folder_lock import FolderLock

WRITERS = (
    ("caption", "--run", "{}"),
    ("shard", "--run", "{}"),
    ("encode", "--run", "{}"),
    ("verify", "--run", "{}", "--repair"),
    ("prepare", "--out", "{}", "--videos", "{videos}"),
    ("run", "--out", "{}", "--videos", "{videos}"),
)
READERS = (
    ("verify", "--run", "{}", "--pairs", "0"),
    ("report", "--run", "{}"),
    ("plan", "--run", "{}", "--ranks", "1"),
)


def filled(arguments, run, videos):
    return [argument.format(run.root, videos=videos) for argument in arguments]


def test_a_second_command_that_writes_ends_with_one_sentence(run_copy, scene_videos, command):
    before = sorted(run_copy.list("**"))
    with FolderLock(run_copy, "recaption shard"):
        for arguments in WRITERS:
            code, summary, error = command(*filled(arguments, run_copy, scene_videos))
            assert (code, summary) == (2, {}), arguments
            assert error.count("\n") == 1
            assert f"{run_copy.uri}: `recaption shard` (since " in error
            assert "works on it: wait until it ends" in error
    assert sorted(run_copy.list("**")) == before


@pytest.mark.parametrize("arguments", READERS, ids=lambda arguments: arguments[0])
def test_a_command_that_only_reads_does_not_wait(run_copy, scene_videos, command, arguments):
    with FolderLock(run_copy, "recaption shard"):
        code, _, error = command(*filled(arguments, run_copy, scene_videos))
    assert code == 0, error


def test_two_trainings_of_one_name_exclude_each_other(run_copy, command):
    arguments = ("train", "dit", "--run", run_copy.root, "--name", "mine", "--steps", "1")
    with FolderLock(run_copy, "recaption train dit --name mine", name="train/mine.lock"):
        code, _, error = command(*arguments)
    assert code == 2
    assert error.startswith(f"recaption: {run_copy.uri}: `recaption train dit --name mine` (since ")


def test_a_command_after_a_killed_one_says_so_and_removes_its_temporary_files(run_copy, scene_videos, command):
    with FolderLock(run_copy, "recaption prepare"):
        lock = run_copy.read_bytes("run.lock")
    run_copy.write_bytes("run.lock", lock)  # as if it had been killed
    half = "clips/part-00000.parquet.0a1b2c3d.tmp"
    run_copy.write_bytes(half, b"half")
    code, _, error = command("shard", "--run", run_copy.root)
    assert code == 0
    assert "recaption: `recaption prepare` (since " in error
    assert "was killed; going on after it" in error
    assert not run_copy.exists(half)
    assert not run_copy.exists("run.lock")
