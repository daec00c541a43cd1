"""Object storage that goes away midway: one clear sentence, no partial files; the same command again completes the run."""

import contextlib
import os
import socket
import threading
import time

import pytest

from jobs.cli import main
from jobs.cluster.cluster import Cluster
from recaption.folder_lock import RUN_LOCK
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

NUM_VIDEOS = 6


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
def bucket(tmp_path, monkeypatch):
    """s3:// on a local moto server with six videos in it, behind a proxy that can be disconnected."""
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
    for seed in range(NUM_VIDEOS):
        scene = render(7000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(tmp_path / "scene.mp4")
        folder.write_bytes(f"raw/scene-{seed}.mp4", (tmp_path / "scene.mp4").read_bytes())
    with Cluster(num_workers=1, progress=False) as cluster:
        cluster.run_once(os.path.exists, "/")  # the Ray of all commands: its workers have these variables
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
            time.sleep(0.05)
        proxy.disconnect()

    threading.Thread(target=disconnect_after_two_parts, daemon=True).start()
    assert main(["prepare", *arguments, "--out", "s3://data/lost"]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("recaption: ")
    proxy.reconnect()
    left = objects(folder, "lost")
    left.pop(RUN_LOCK)  # it could not be removed; the next command of this host takes it over
    complete = objects(folder, "uninterrupted")
    assert {name: complete[name] for name in left} == left
    assert 2 <= sum(name.startswith("videos/") for name in left) < NUM_VIDEOS
    assert main(["run", *arguments, "--stop-after", "shard", "--out", "s3://data/lost"]) == 0
    finished = objects(folder, "lost")
    assert {name: finished[name] for name in complete} == complete
    assert any(name.startswith("shards/") and name.endswith(".tar") for name in finished)
    assert main(["verify", "--run", "s3://data/lost"]) == 0
