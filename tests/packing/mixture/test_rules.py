from __future__ import annotations

import numpy as np
import pytest

from packing.mixture.rules import parse_rule, product
from packing.mixture.sample_sizes import SampleSizes
from recaption.errors import UsageError

SIZES = SampleSizes(
    np.array([64, 320, 640, 16]),
    num_frames=np.array([1, 5, 10, 1]),
    buckets=["1f-64x64-8fps", "17f-64x64-8fps", "37f-64x64-8fps", "1f-32x32-8fps"],
)
ALL = np.arange(4)


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("2", [0, 1, 2, 3]),
        ("all=2", [0, 1, 2, 3]),
        ("images=2", [0, 3]),
        ("videos=2", [1, 2]),
        ("17f-64x64-8fps=2", [1]),
        ("tokens>320=2", [2]),
        ("tokens>=320=2", [1, 2]),
        ("tokens<64=2", [3]),
        ("frames<=5=2", [0, 1, 3]),
        ("frame_tokens<64=2", [3]),
    ],
)
def test_a_rule_is_about_the_samples_it_names(rule: str, chosen: list[int]) -> None:
    assert np.flatnonzero(product([parse_rule(rule)], SIZES, ALL, 0.0) == 2).tolist() == chosen


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("0.5@epoch<2", [0.5, 0.5, 1, 1]),
        ("0.5@epoch>=2", [1, 1, 0.5, 0.5]),
        ("0.5@1<=epoch<3", [1, 0.5, 0.5, 1]),
        ("0..1@epoch<4", [0, 0.25, 0.5, 0.75]),
        ("1..0@1<=epoch<3", [1, 1, 0.5, 1]),
    ],
)
def test_a_rule_holds_when_it_says(rule: str, values: list[float]) -> None:
    assert [product([parse_rule(rule)], SIZES, ALL, float(epoch))[0] for epoch in range(4)] == values


def test_rules_multiply_in_any_order() -> None:
    rules = [parse_rule(rule) for rule in ("images=2", "tokens<64=0.25", "0.5@epoch<1")]
    assert product(rules, SIZES, ALL, 0.0).tolist() == [1, 0.5, 0.5, 0.25]
    assert product(rules[::-1], SIZES, ALL, 0.0).tolist() == [1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("", "is not a value"),
        ("tokens", "is not a value"),  # what a shell leaves of tokens>9=1
        ("tokens>=1024", "names no samples"),
        ("pictures=2", "names no samples"),
        ("images=-1", "is not a value"),
        ("images=nan", "is not a value"),
        ("images=beta(2,2)", "is not a value"),
        ("images=2@epoch", "after @ stands"),
        ("images=2@step<5", "after @ stands"),
        ("images=2@epoch<0", "never holds"),
        ("images=2@3<=epoch<3", "never holds"),
        ("0..1", "has to arrive"),
        ("0..1@epoch>=2", "has to arrive"),
    ],
)
def test_wrong_rules_are_one_clear_sentence(rule: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_rule(rule)


def test_what_is_not_known_of_the_samples_is_not_guessed() -> None:
    only_tokens = SampleSizes(np.array([64, 320]))
    for rule in ("images=2", "frames>3=2", "frame_tokens>3=2", "17f-64x64-8fps=2"):
        with pytest.raises(UsageError, match=r"lack them|do not name them"):
            product([parse_rule(rule)], only_tokens, np.arange(2), 0.0)
    rule, sizes = parse_rule("9f-64x64-8fps=2"), SampleSizes(np.array([64]), buckets=["17f-64x64-8fps"])
    with pytest.raises(UsageError, match="no sample is in bucket 9f-64x64-8fps; there are 17f-64x64-8fps"):
        product([rule], sizes, np.arange(1), 0.0)
