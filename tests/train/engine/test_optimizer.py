from __future__ import annotations

import itertools

import pytest

from train.engine.optimizer import SCHEDULES, lr_at

RUN = {"peak": 2.0, "num_steps": 100, "warmup_steps": 10, "final_fraction": 0.1, "decay_fraction": 0.2}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_warms_up_never_rises_again_and_ends_at_the_final_rate(schedule):
    rates = [lr_at(step, schedule=schedule, **RUN) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_wsd_is_constant_then_decays_linearly():
    rates = [lr_at(step, schedule="wsd", **RUN) for step in range(100)]
    assert set(rates[10:80]) == {2.0}
    assert rates[79] == 2.0 > rates[80]
    assert all(a - b == pytest.approx(1.8 / 20) for a, b in itertools.pairwise(rates[79:]))


def test_extending_a_wsd_run_changes_no_rate_before_the_decay():
    longer = RUN | {"num_steps": 300}
    assert [lr_at(step, schedule="wsd", **longer) for step in range(80)] == [
        lr_at(step, schedule="wsd", **RUN) for step in range(80)
    ]
    assert lr_at(99, schedule="wsd", **longer) == 2.0


def test_decay_as_long_as_the_run_starts_after_the_warmup():
    rates = [lr_at(step, schedule="wsd", **(RUN | {"decay_fraction": 1.0})) for step in range(100)]
    assert rates[10] == 2.0 > rates[11]
    assert rates[-1] == pytest.approx(0.2)
