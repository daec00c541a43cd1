"""Four of 44 inputs kill their worker, each in another way: the job ends with 44 of 44 rows."""

import ctypes
import os
import time

import pytest

from jobs.cluster import attempts
from jobs.cluster.cluster import Cluster
from jobs.cluster.worker_errors import WorkerError
from recaption.errors import VideoError

NUM_ROWS = 44
DIED = "its worker process died 3 times on it: it crashed, or was killed"
PARTS = [{"rows": list(range(first, first + 4))} for first in range(0, NUM_ROWS, 4)]


def exits():
    os._exit(7)


def segfaults():
    ctypes.string_at(0)


def raises():
    raise ZeroDivisionError("no such frame rate")


def sleeps():
    time.sleep(3600)


class Poisoned:
    def __init__(self, ways):
        self.ways = {int(n): globals()[way] for n, way in ways.items()}

    def __call__(self, part):
        rows = []
        for n in part["rows"]:
            try:
                attempts.begin(str(n))
                self.ways.get(n, int)()
                rows.append([n, "ok", ""])
            except VideoError as error:
                rows.append([n, error.reason, error.detail])
        attempts.begin()
        return {"rows": rows, "num_rows": len(rows)}


class DiesWhileWriting(Poisoned):
    def __call__(self, part):
        attempts.begin()
        if 13 in part["rows"]:
            os._exit(7)
        return {}


class NeverStarts:
    def __init__(self):
        os._exit(7)


@pytest.fixture(scope="module")
def one_worker(local_ray):
    return Cluster(num_workers=1, progress=False)


def rows_of(cluster, ways):
    found = cluster.run_parts(Poisoned, {"ways": ways}, PARTS, title="poison", unit="num_rows")
    return sorted(row for summary in found for row in summary["rows"])


def test_a_pool_of_one_survives_the_death_of_its_only_worker(one_worker):
    rows = rows_of(one_worker, {"13": "exits"})
    assert [n for n, _, _ in rows] == list(range(NUM_ROWS))
    assert [row for row in rows if row[1] != "ok"] == [[13, "unreadable", DIED]]
    assert one_worker.throughput()["units"] == NUM_ROWS


def test_a_worker_that_cannot_start_ends_the_job(one_worker):
    with pytest.raises(WorkerError, match="died 5 times while it started"):
        list(one_worker.run_parts(NeverStarts, {}, PARTS, title="poison"))


@pytest.mark.slow
def test_a_part_that_dies_outside_its_inputs_is_reported_after_all_others_are_done(one_worker):
    with pytest.raises(WorkerError, match=r"10 of 11 parts are done, 1 failed: part 3: its worker died 5 times"):
        list(one_worker.run_parts(DiesWhileWriting, {"ways": {}}, PARTS, title="poison"))
    assert one_worker.throughput()["parts"] == 10


def test_44_of_44_rows_come_out(local_ray):
    cluster = Cluster(num_workers=2, progress=False, input_timeout_seconds=3)
    rows = rows_of(cluster, {"6": "exits", "13": "segfaults", "26": "raises", "40": "sleeps"})
    assert [n for n, _, _ in rows] == list(range(NUM_ROWS))
    assert [row for row in rows if row[1] != "ok"] == [
        [6, "unreadable", DIED],
        [13, "unreadable", DIED],
        [26, "unreadable", "its worker failed 3 times: ZeroDivisionError: no such frame rate"],
        [40, "decode_timeout", "its worker made no progress for 3 s"],
    ]
