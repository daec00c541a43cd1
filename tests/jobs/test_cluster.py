import subprocess
import sys

import pytest
import torch

from jobs.cluster import Cluster, WorkerError
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


def test_a_cluster_that_does_not_answer_is_a_usage_error():
    with pytest.raises(UsageError, match="no Ray cluster answers"), Cluster(address="127.0.0.1:1") as lost:
        list(lost.run_parts(Doubler, {"factor": 1}, [{"n": 1}], title="double"))


@pytest.fixture(scope="module")
def cluster():
    with Cluster(num_workers=2, progress=False) as cluster:
        yield cluster


def test_every_part_is_done_once(cluster):
    parts = [{"n": n} for n in range(10)]
    summaries = list(cluster.run_parts(Doubler, {"factor": 2}, parts, title="double"))
    assert sorted(s["n"] for s in summaries) == [2 * n for n in range(10)]


def test_nothing_to_do_starts_nothing():
    cluster = Cluster()
    assert list(cluster.run_parts(Doubler, {"factor": 2}, [], title="double")) == []
    assert not cluster._started


def test_a_users_mistake_comes_back_as_itself(cluster):
    with pytest.raises(WeightsUnreachableError, match="thirteen"):
        list(cluster.run_parts(Doubler, {"factor": 2}, [{"n": 13}], title="double"))


def test_any_other_error_names_stage_and_cause(cluster):
    with pytest.raises(WorkerError, match="double: a worker failed: ZeroDivisionError: fourteen"):
        list(cluster.run_parts(Doubler, {"factor": 2}, [{"n": 14}], title="double"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_no_node_has_is_refused_instead_of_waited_for(cluster):
    with pytest.raises(UsageError, match="no node of this Ray cluster has a GPU"):
        list(cluster.run_parts(Doubler, {"factor": 1}, [{"n": 1}], title="double", device="cuda"))
    assert cluster.run_once(tripled, 3, device="auto") == 9


def test_after_a_run_that_failed_nothing_starts_ray_again():
    """Ray's own threads and API start a Ray on first use, which collided with the next one of the same process."""
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import pytest
from jobs.cluster import Cluster, WorkerError
from tests.jobs.test_cluster import Doubler

with pytest.raises(WorkerError), Cluster(num_workers=1, progress=False) as cluster:
    list(cluster.run_parts(Doubler, {{"factor": 1}}, [{{"n": 14}}, {{"n": 1}}, {{"n": 2}}], title="double"))
import ray
with pytest.raises(ray.exceptions.RaySystemError):
    ray.put(1)
assert not ray.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
