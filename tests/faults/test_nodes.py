"""Node failures in a Ray cluster of several nodes on one machine: the job finishes without the killed node."""

import hashlib
import os
import threading
import time

import pytest

from jobs.cli import main
from jobs.cluster.cluster import Cluster
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

NUM_VIDEOS = 24


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(NUM_VIDEOS):
        scene = render(8000 + seed, num_frames=17, height_px=64, width_px=96, fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed:02d}.mp4")
    return folder


@pytest.fixture
def nodes(monkeypatch):
    """A head node without CPUs, and two worker nodes of one CPU each."""
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # by default a node counts as lost after 30 s without a heartbeat
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
    yield nodes, workers
    nodes.shutdown()


def hash_files(out):
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_killed_node_costs_only_the_parts_it_was_working_on(videos, nodes, tmp_path):
    nodes, (first, _second) = nodes
    arguments = ["prepare", "--videos", str(videos), "--prepare.part-size", "1", "--no-progress"]
    out = tmp_path / "killed"
    finished = {}

    def kill_a_node():
        run = RunFolder(str(out))
        while len(run.list("videos/part-*.parquet")) < 5:
            time.sleep(0.02)
        finished.update({path: path.stat().st_mtime_ns for path in out.glob("videos/part-*.parquet")})
        nodes.remove_node(first, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    assert main([*arguments, "--out", str(out), "--address", nodes.address]) == 0
    killer.join()
    assert len(finished) < NUM_VIDEOS
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished part was written again"
    assert main([*arguments, "--out", str(tmp_path / "uninterrupted"), "--num-workers", "2"]) == 0
    assert hash_files(out) == hash_files(tmp_path / "uninterrupted")


class Sleeper:
    def __call__(self, part):
        import ray

        time.sleep(0.8)  # 40 s on two nodes: a third takes up to 20 to start
        return {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}


@pytest.mark.slow
def test_the_pool_uses_all_nodes_and_one_that_joins_later(nodes):
    nodes, _ = nodes
    summaries = []
    with Cluster(address=nodes.address, progress=False) as cluster:
        for summary in cluster.run_parts(Sleeper, {}, [{"n": n} for n in range(100)], title="sleep"):
            summaries.append(summary)
            if len(summaries) == 10:
                nodes.add_node(num_cpus=1)
    assert len(summaries) == 100
    assert len({summary["node"] for summary in summaries}) == 3
    assert cluster.throughput()["workers"] == 3
