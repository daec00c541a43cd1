"""Retries of a part without Ray: a loop simulates the process that dies and is restarted."""

import pytest

from jobs.cluster import attempts
from jobs.cluster.attempts import Attempt, PartError, PartFaultError, PartState
from recaption.errors import UsageError, VideoError


class Death(BaseException):
    """Death of the process: no handler runs, no state is saved."""


def run(work, *, alive=lambda node: True):
    """Restart `work` until it succeeds; its result and the number of starts."""
    saved = {}
    for start in range(1, 100):
        state = PartState(**saved)
        state.attribute_last_failure(alive)
        attempt = Attempt(state, saved.update, node="here", input_timeout_seconds=1000)
        attempts.set_current(attempt)
        try:
            return work(), start
        except Death:
            continue
        except Exception as error:
            if not attempt.record_exception(error):
                raise
        finally:
            attempts.set_current(None)
            attempt.end()
    raise AssertionError("it never ends")


def one_by_one(inputs, act):
    def work():
        rows = []
        for key in inputs:
            try:
                attempts.begin(key)
                act(key)
                rows.append((key, "ok"))
            except VideoError as error:
                rows.append((key, error.detail))
        attempts.begin()
        return rows

    return work


def dies_on(*poison):
    def act(*keys):
        if set(keys) & set(poison):
            raise Death

    return act


def test_two_of_five_inputs_kill_and_five_rows_come_out():
    rows, starts = run(one_by_one("abcde", dies_on("b", "d")))
    assert [key for key, _ in rows] == list("abcde")
    assert [key for key, state in rows if state != "ok"] == ["b", "d"]
    assert starts == 1 + 3 + 3 + 1  # the first death is not attributed; the last start succeeds


def test_an_exception_becomes_the_detail_of_the_failed_row():
    def act(key):
        if key == "c":
            raise MemoryError("8 GB for one frame")

    rows, starts = run(one_by_one("abcd", act))
    assert rows[2] == ("c", "its worker failed 3 times: MemoryError: 8 GB for one frame")
    assert starts == 4


@pytest.mark.parametrize("error", [OSError("the disk is full"), UsageError("no such captioner")])
def test_storage_and_usage_errors_are_not_attributed_to_inputs(error):
    def act(key):
        raise error

    with pytest.raises(type(error)):
        run(one_by_one("abcd", act))


def test_inputs_of_a_batch_that_dies_run_alone():
    def work():
        rows = []
        for batch in attempts.batches("abcdefgh", 4, str):
            try:
                attempts.begin(*batch)
                dies_on("f")(*batch)
                rows += [(key, "ok") for key in batch]
            except VideoError:
                rows += [(key, "failed") for key in batch]
        return rows

    rows, _ = run(work)
    assert rows == [(key, "failed" if key == "f" else "ok") for key in "abcdefgh"]


def test_fewer_than_three_deaths_fail_no_input():
    deaths = iter([True, True, True, False, False, False, False, False])

    def act(key):
        if key == "b" and next(deaths):
            raise Death

    rows, _ = run(one_by_one("abc", act))
    assert rows == [("a", "ok"), ("b", "ok"), ("c", "ok")]


def test_deaths_on_a_lost_node_are_not_attributed():
    deaths = iter([True] * 12 + [False])

    def act(key):
        if key == "b" and next(deaths):
            raise Death

    rows, starts = run(one_by_one("abc", act), alive=lambda node: False)
    assert rows == [("a", "ok"), ("b", "ok"), ("c", "ok")]
    assert starts == 13


def test_deaths_with_no_input_in_progress_are_limited():
    def work():
        attempts.begin("a")
        attempts.begin()
        raise Death

    with pytest.raises(PartError, match="died 5 times with no input in progress"):
        run(work)


def test_a_stage_that_fails_on_everything_is_not_blamed_on_its_inputs():
    def act(key):
        raise NameError("a typing error in the stage")

    with pytest.raises(PartError, match=r"the first 4 inputs all killed their worker.*NameError"):
        run(one_by_one("abcdefgh", act))


def test_outside_of_a_job_begin_does_nothing():
    attempts.begin("a")
    assert list(attempts.batches([1, 2, 3], 2, str)) == [[1, 2], [3]]


def test_a_worker_that_was_killed_to_free_memory_says_so():
    state = PartState(num_attempts=1, worker="w3", in_progress=["a"], deaths={"a": 2})
    state.attribute_last_failure(lambda node: True, lambda worker: worker == "w3")
    reason, detail = state.failed_inputs["a"]
    assert reason == "decode_memory"
    assert "killed 3 times, the last time to free memory" in detail


def test_inputs_that_all_raise_the_same_are_a_bug_of_the_stage():
    state = PartState(num_attempts=1, in_progress=["d"], error="ZeroDivisionError: no", deaths={"d": 2})
    state.failed_inputs = {key: ["unreadable", ""] for key in "abc"}
    with pytest.raises(PartFaultError, match="the first 4 inputs all killed their worker"):
        state.attribute_last_failure(lambda node: True)
