"""Failures of a local disk midway: one clear sentence, no partial files, and the same command again completes the run."""

import builtins
import errno
import os
import subprocess

import pytest

from jobs.cli import main
from recaption.errors import StorageError
from recaption.run_folder import TEMPORARY_SUFFIX, RunFolder
from recaption.scenes.renderer import SIMPLE, render

NUM_VIDEOS = 6


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        scene = render(7000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed}.mp4")
    return folder


def full_disk(monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def failed_rename(monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", refuse)


def other_bytes_come_back(monkeypatch):
    really_open = builtins.open

    def open_short(path, mode="r", *arguments, **named):
        if mode == "rb" and str(path).endswith(TEMPORARY_SUFFIX):
            os.truncate(path, 1)
        return really_open(path, mode, *arguments, **named)

    monkeypatch.setattr(builtins, "open", open_short)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (full_disk, "No space left on device"),
        (failed_rename, "Input/output error"),
        (other_bytes_come_back, "it does not read back as it was written"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fault, cause):
    run = RunFolder(str(tmp_path))
    run.write_bytes("part", b"old")
    with monkeypatch.context() as faulty:
        fault(faulty)
        with pytest.raises(StorageError, match=f"part cannot be written: {cause}"):
            run.write_bytes("part", b"new")
    assert run.read_bytes("part") == b"old"
    assert os.listdir(tmp_path) == ["part"]
    run.write_bytes("part", b"new")
    assert run.read_bytes("part") == b"new"


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a few parts only."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(mount_point)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system of limited size takes root")
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def read_files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_full_disk_is_one_sentence_and_the_next_command_continues(videos, local_ray, small_disk, tmp_path, capfd):
    arguments = ["prepare", "--videos", str(videos), "--prepare.part-size", "1", "--num-workers", "1", "--no-progress"]
    assert main([*arguments, "--out", str(tmp_path / "uninterrupted")]) == 0
    capfd.readouterr()
    out = small_disk / "run"
    assert main([*arguments, "--out", str(out)]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("recaption: prepare: a worker failed: ")
    assert error.endswith(
        "cannot be written: No space left on device; finished parts are safe, run the same command again"
    )
    left = read_files(out)
    assert not [name for name in left if name.endswith(TEMPORARY_SUFFIX)]
    assert all(content == (tmp_path / "uninterrupted" / name).read_bytes() for name, content in left.items())
    assert 0 < sum(name.startswith("videos/") for name in left) < NUM_VIDEOS
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert main([*arguments, "--out", str(out)]) == 0
    assert read_files(out) == read_files(tmp_path / "uninterrupted")
