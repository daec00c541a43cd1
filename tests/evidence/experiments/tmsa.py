"""DiffiT: time in queries, keys and values, or in the attention bias only."""

from __future__ import annotations

from tests.evidence.experiment import Arm, Claim, Experiment

DIFFIT = {"backbone": "diffit", "width": 248, "depth": 5}
BIAS = {"relative_bias": (1, 4, 4)}
"""Positions as in the paper, in both arms: a clip has 1 x 4 x 4 tokens."""

EXPERIMENT = Experiment(
    question="Does time-dependent attention help more than time in the attention bias only?",
    source="DiffiT 2312.02139, section 5: FID 1.95 against 3.97 with time in the bias only",
    arms=(
        Arm("diffit", dit={**DIFFIT, "diffit": {**BIAS, "time_in": "qkv"}}),
        Arm("diffit_time_in_bias", dit={**DIFFIT, "diffit": {**BIAS, "time_in": "bias"}}),
    ),
    claims=(
        Claim("with time in queries, keys and values more prompts are followed", "diffit", "diffit_time_in_bias"),
        Claim("with time in queries, keys and values the loss is lower", "diffit", "diffit_time_in_bias", "loss"),
    ),
)
