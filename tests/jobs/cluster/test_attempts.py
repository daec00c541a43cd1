"""The record of a part, without Ray: a loop plays the process that dies and is started again."""

import pytest

from jobs.cluster import attempts
from jobs.cluster.attempts import Attempt, PartError, Record
from recaption.errors import UsageError, VideoError


class Death(BaseException):
    """The end of the process: nothing catches it, nothing is noted."""


def run(work, *, alive=lambda node: True):
    """Start `work` again until it comes through; its result and the number of starts."""
    note = {}
    for start in range(1, 100):
        record = Record(**note)
        record.account_for_last_attempt(alive)
        attempt = Attempt(record, note.update, node="here", stuck_seconds=1000)
        attempts.start(attempt)
        try:
            return work(), start
        except Death:
            continue
        except Exception as error:
            if not attempt.raised(error):
                raise
        finally:
            attempts.start(None)
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
    assert starts == 1 + 3 + 3 + 1  # nobody knows about the first death; the last start comes through


def test_an_exception_is_an_inputs_own_and_says_what_it_was():
    def act(key):
        if key == "c":
            raise MemoryError("8 GB for one frame")

    rows, starts = run(one_by_one("abcd", act))
    assert rows[2] == ("c", "its worker failed 3 times: MemoryError: 8 GB for one frame")
    assert starts == 4


@pytest.mark.parametrize("error", [OSError("the disk is full"), UsageError("no such captioner")])
def test_storage_and_users_mistakes_are_nobodys_row(error):
    def act(key):
        raise error

    with pytest.raises(type(error)):
        run(one_by_one("abcd", act))


def test_a_batch_that_dies_is_taken_apart():
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


def test_fewer_than_three_deaths_leave_everything_as_it_was():
    deaths = iter([True, True, True, False, False, False, False, False])

    def act(key):
        if key == "b" and next(deaths):
            raise Death

    rows, _ = run(one_by_one("abc", act))
    assert rows == [("a", "ok"), ("b", "ok"), ("c", "ok")]


def test_a_node_that_is_gone_says_nothing_about_the_input():
    deaths = iter([True] * 12 + [False])

    def act(key):
        if key == "b" and next(deaths):
            raise Death

    rows, starts = run(one_by_one("abc", act), alive=lambda node: False)
    assert rows == [("a", "ok"), ("b", "ok"), ("c", "ok")]
    assert starts == 13


def test_deaths_outside_inputs_end():
    def work():
        attempts.begin("a")
        attempts.begin()
        raise Death

    with pytest.raises(PartError, match="died 5 times, on no input in particular"):
        run(work)


def test_a_stage_that_fails_on_everything_is_not_blamed_on_its_inputs():
    def act(key):
        raise NameError("a typing error in the stage")

    with pytest.raises(PartError, match=r"4 inputs in a row ended their worker and none did not.*NameError"):
        run(one_by_one("abcdefgh", act))


def test_outside_of_a_job_nothing_is_watched():
    attempts.begin("a")
    assert list(attempts.batches([1, 2, 3], 2, str)) == [[1, 2], [3]]
