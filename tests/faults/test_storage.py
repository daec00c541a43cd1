"""Storage failures midway: one clear sentence, no partial files, and the same command again completes the run."""

import builtins
import contextlib
import errno
import os
import socket
import subprocess
import threading
import time

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


# --- one file ---------------------------------------------------------------------------------------------------------


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


# --- a disk that is full ----------------------------------------------------------------------------------------------


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


def test_a_full_disk_is_one_sentence_and_the_next_command_continues(videos, small_disk, tmp_path, capfd):
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


# --- object storage ---------------------------------------------------------------------------------------------------


class TcpProxy:
    """A TCP proxy that can be disconnected: open connections are closed, new ones are refused."""

    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.is_disconnected = False
        self.open = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.is_disconnected:
                client.close()
                continue
            upstream = socket.create_connection(self.target)
            self.open |= {client, upstream}
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source, sink):
        try:
            while block := source.recv(1 << 16):
                sink.sendall(block)
        except OSError:
            pass
        for end in (source, sink):
            self.open.discard(end)
            end.close()

    def disconnect(self):
        self.is_disconnected = True
        for end in list(self.open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def reconnect(self):
        self.is_disconnected = False


@pytest.fixture
def bucket(videos, monkeypatch):
    """s3:// on a local moto server with the videos in it, behind a proxy that can be disconnected."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = TcpProxy(server.get_host_and_port()[1])
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    folder = RunFolder("s3://data")
    folder.fs.mkdir("data")
    for video in videos.iterdir():
        folder.write_bytes(f"raw/{video.name}", video.read_bytes())
    yield folder, proxy
    proxy.reconnect()
    server.stop()


def objects(folder, out):
    folder.fs.invalidate_cache()
    paths = [path for path in folder.fs.find(f"data/{out}") if "/report/" not in path]
    return {path.removeprefix(f"data/{out}/"): folder.fs.cat_file(path) for path in paths}


def test_a_run_on_object_storage_continues_after_losing_the_connection(bucket, capfd):
    folder, proxy = bucket
    arguments = ["--videos", "s3://data/raw", "--prepare.part-size", "1", "--num-workers", "1", "--no-progress"]
    assert main(["prepare", *arguments, "--out", "s3://data/uninterrupted"]) == 0
    capfd.readouterr()

    def disconnect_after_two_parts():
        watch = RunFolder("s3://data/lost")
        while len(watch.list("videos/part-*.parquet")) < 2:
            time.sleep(0.02)
        proxy.disconnect()

    threading.Thread(target=disconnect_after_two_parts, daemon=True).start()
    assert main(["prepare", *arguments, "--out", "s3://data/lost"]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("recaption: ")
    proxy.reconnect()
    left = objects(folder, "lost")
    complete = objects(folder, "uninterrupted")
    assert {name: complete[name] for name in left} == left
    assert 2 <= sum(name.startswith("videos/") for name in left) < NUM_VIDEOS
    assert main(["run", *arguments, "--stop-after", "shard", "--out", "s3://data/lost"]) == 0
    finished = objects(folder, "lost")
    assert {name: finished[name] for name in complete} == complete
    assert any(name.startswith("shards/") and name.endswith(".tar") for name in finished)
    assert main(["verify", "--run", "s3://data/lost"]) == 0
