import json
import subprocess
import sys

import pytest

from jobs.cluster.cluster import Cluster
from jobs.cluster.worker_errors import WorkerFaultError
from recaption.errors import UsageError, WeightsUnreachableError


def tripled(number):
    return 3 * number


class Doubler:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, part):
        if part["n"] == 13:
            raise WeightsUnreachableError("thirteen")
        if part["n"] == 14:
            raise ZeroDivisionError("fourteen")
        return {"n": part["n"] * self.factor}


def test_an_unreachable_cluster_is_a_usage_error():
    with pytest.raises(UsageError, match="no Ray cluster at"), Cluster(address="127.0.0.1:1") as lost:
        list(lost.run_parts(Doubler, {"factor": 1}, [{"n": 1}], title="double"))


@pytest.fixture(scope="module")
def cluster(local_ray):
    return local_ray


@pytest.fixture(scope="module")
def running(local_ray):
    """The same Ray, used as a running cluster by address."""
    return Cluster(address="auto", num_workers=2, progress=False)


def doubled(cluster, *numbers):
    parts = [{"n": n} for n in numbers]
    return sorted(summary["n"] for summary in cluster.run_parts(Doubler, {"factor": 2}, parts, title="double"))


def test_every_part_runs_once(cluster):
    assert doubled(cluster, *range(10)) == [2 * n for n in range(10)]
    assert cluster.throughput()["parts"] == 10


def test_a_running_cluster_does_the_same(running):
    assert doubled(running, *range(5)) == [2 * n for n in range(5)]
    with pytest.raises(WeightsUnreachableError, match="thirteen"):
        doubled(running, 13)


def test_a_stage_that_ended_early_leaves_its_cores_to_the_next(cluster):
    with pytest.raises(WeightsUnreachableError, match="thirteen"):
        doubled(cluster, 13, *range(20, 30))
    assert doubled(cluster, *range(4)) == [0, 2, 4, 6]


def test_without_parts_ray_is_not_started():
    cluster = Cluster()
    assert list(cluster.run_parts(Doubler, {"factor": 2}, [], title="double")) == []
    assert not cluster._started


def test_a_recaption_error_keeps_its_class(cluster):
    with pytest.raises(WeightsUnreachableError, match="thirteen"):
        list(cluster.run_parts(Doubler, {"factor": 2}, [{"n": 13}], title="double"))


def test_any_other_error_names_stage_and_cause(cluster):
    with pytest.raises(WorkerFaultError, match="double: a worker failed: ZeroDivisionError: fourteen"):
        list(cluster.run_parts(Doubler, {"factor": 2}, [{"n": 14}], title="double"))


def test_a_gpu_that_no_node_has_is_an_error(cluster):
    import ray

    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="no node of this Ray cluster has a GPU"):
        list(cluster.run_parts(Doubler, {"factor": 1}, [{"n": 1}], title="double", device="cuda"))
    assert cluster.run_once(tripled, 3, device="auto") == 9


@pytest.fixture(scope="module")
def in_a_process_of_its_own():
    """What a process finds that runs a stage, then a stage that fails, and then looks around."""
    script = f"""
import json, os, stat, subprocess, sys
from pathlib import Path
import ray
sys.path[:0] = {sys.path!r}
from jobs.cluster.cluster import Cluster
from jobs.cluster.worker_errors import WorkerError, WorkerFaultError
from tests.jobs.cluster.test_cluster import Doubler, doubled

found = {{}}
with Cluster(num_workers=1, progress=False) as cluster:
    found["numbers"] = doubled(cluster, 1, 2, 3)
    found["folder"] = cluster._session.path
    found["mode"] = {{
        name: stat.S_IMODE(os.stat(os.path.join(found["folder"], name)).st_mode) for name in ("", "token")
    }}
    found["sockets"] = len(list(Path(found["folder"]).rglob("sockets/*")))
    found["without the token"] = subprocess.run(
        [sys.executable, "-c", "import ray; ray.init(address='" + ray.get_runtime_context().gcs_address + "')"],
        env={{**os.environ, "RAY_AUTH_TOKEN": "0" * 64, "RAY_BACKEND_LOG_LEVEL": "fatal"}}, capture_output=True, text=True,
    ).stderr
    found["imported"] = sorted({{"ray.data", "pandas", "torch"}} & set(sys.modules))
    try:
        list(cluster.run_parts(Doubler, {{"factor": 1}}, [{{"n": 14}}, {{"n": 1}}, {{"n": 2}}], title="double"))
    except WorkerError:
        found["failed"] = True
found["folder is left"] = os.path.exists(found["folder"])
try:
    ray.put(1)
except ray.exceptions.RaySystemError:
    found["put"] = "refused"
found["is_initialized"] = ray.is_initialized()
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ray_data_is_not_started_on_one_machine(in_a_process_of_its_own):
    """Ray Data starts three actors and imports pandas everywhere: half of the overhead of a local Ray."""
    assert in_a_process_of_its_own["numbers"] == [2, 4, 6]
    assert in_a_process_of_its_own["imported"] == []


def test_after_a_run_that_failed_nothing_starts_ray_again(in_a_process_of_its_own):
    """Ray's API starts a Ray on first use, which collided with the next cluster of the same process."""
    assert in_a_process_of_its_own["failed"]
    assert in_a_process_of_its_own["put"] == "refused"
    assert not in_a_process_of_its_own["is_initialized"]


def test_the_sessions_of_the_local_ray_are_private_and_removed(in_a_process_of_its_own):
    found = in_a_process_of_its_own
    assert found["mode"] == {"": 0o700, "token": 0o600}
    assert found["sockets"] >= 2  # Ray was really there
    assert not found["folder is left"]


def test_the_local_ray_refuses_calls_without_its_token(in_a_process_of_its_own):
    assert "AuthenticationError" in in_a_process_of_its_own["without the token"]
