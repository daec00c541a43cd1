"""U-ViT with and without its long skips."""

from __future__ import annotations

from tests.evidence.experiment import Arm, Claim, Experiment

UVIT = {"backbone": "uvit", "depth": 6}

EXPERIMENT = Experiment(
    question="Do the long skips of a U-ViT help, at equal tokens?",
    source="U-ViT 2209.12152: the skips are crucial",
    arms=(Arm("uvit", dit=UVIT), Arm("uvit_without_skips", dit={**UVIT, "uvit": {"skips": False}})),
    claims=(
        Claim("with long skips more prompts are followed", "uvit", "uvit_without_skips"),
        Claim("with long skips the loss is lower", "uvit", "uvit_without_skips", "loss"),
    ),
)
