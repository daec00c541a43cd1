from __future__ import annotations

import itertools

import pytest

from train.engine.optimizer import SCHEDULES, lr_at

RUN = {"peak": 2.0, "num_steps": 100, "warmup_steps": 10, "final_share": 0.1, "decay_share": 0.2}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_warms_up_never_rises_again_and_ends_where_asked(schedule):
    rates = [lr_at(step, schedule=schedule, **RUN) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_wsd_is_level_until_the_last_share_then_straight_down():
    rates = [lr_at(step, schedule="wsd", **RUN) for step in range(100)]
    assert set(rates[10:80]) == {2.0}
    assert rates[79] == 2.0 > rates[80]
    assert all(a - b == pytest.approx(1.8 / 20) for a, b in itertools.pairwise(rates[79:]))


def test_wsd_run_made_longer_goes_on_as_if_it_had_always_been_so():
    longer = RUN | {"num_steps": 300}
    assert [lr_at(step, schedule="wsd", **longer) for step in range(80)] == [
        lr_at(step, schedule="wsd", **RUN) for step in range(80)
    ]
    assert lr_at(99, schedule="wsd", **longer) == 2.0


def test_decay_as_long_as_the_run_starts_after_the_warmup():
    rates = [lr_at(step, schedule="wsd", **(RUN | {"decay_share": 1.0})) for step in range(100)]
    assert rates[10] == 2.0 > rates[11]
    assert rates[-1] == pytest.approx(0.2)
