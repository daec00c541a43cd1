from __future__ import annotations

import numpy as np
import pytest

from packing.mixture.rules import parse_rule, product_of_rules
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
def test_rule_applies_to_the_samples_it_selects(rule: str, chosen: list[int]) -> None:
    assert np.flatnonzero(product_of_rules([parse_rule(rule)], SIZES, ALL, 0.0) == 2).tolist() == chosen


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
def test_rule_is_active_in_its_epoch_range(rule: str, values: list[float]) -> None:
    assert [product_of_rules([parse_rule(rule)], SIZES, ALL, float(epoch))[0] for epoch in range(4)] == values


def test_rules_multiply_in_any_order() -> None:
    rules = [parse_rule(rule) for rule in ("images=2", "tokens<64=0.25", "0.5@epoch<1")]
    assert product_of_rules(rules, SIZES, ALL, 0.0).tolist() == [1, 0.5, 0.5, 0.25]
    assert product_of_rules(rules[::-1], SIZES, ALL, 0.0).tolist() == [1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("", "is not a valid value"),
        ("tokens", "is not a valid value"),  # what a shell leaves of tokens>9=1
        ("tokens>=1024", "selects no samples"),
        ("pictures=2", "selects no samples"),
        ("images=-1", "is not a valid value"),
        ("images=nan", "is not a valid value"),
        ("images=beta(2,2)", "is not a valid value"),
        ("images=2@epoch", "after @ write"),
        ("images=2@step<5", "after @ write"),
        ("images=2@epoch<0", "never active"),
        ("images=2@3<=epoch<3", "never active"),
        ("0..1", "needs an end"),
        ("0..1@epoch>=2", "needs an end"),
    ],
)
def test_malformed_rules_are_refused_with_one_clear_sentence(rule: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_rule(rule)


def test_rules_about_unknown_fields_of_samples_are_refused() -> None:
    only_tokens = SampleSizes(np.array([64, 320]))
    for rule in ("images=2", "frames>3=2", "frame_tokens>3=2", "17f-64x64-8fps=2"):
        with pytest.raises(UsageError, match=r"lack them|do not name them"):
            product_of_rules([parse_rule(rule)], only_tokens, np.arange(2), 0.0)
    rule, sizes = parse_rule("9f-64x64-8fps=2"), SampleSizes(np.array([64]), buckets=["17f-64x64-8fps"])
    with pytest.raises(UsageError, match="no sample is in bucket 9f-64x64-8fps; there are 17f-64x64-8fps"):
        product_of_rules([rule], sizes, np.arange(1), 0.0)
