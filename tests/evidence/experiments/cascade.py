"""A cascade (base, spatial and temporal super-resolution) against one model, at equal CPU time."""

from __future__ import annotations

from packing.buckets import Bucket
from tests.evidence.experiment import Arm, Claim, Experiment
from tests.evidence.world import World

STAGES = "the stages of a cascade (`recaption train dit --stage`)"

EXPERIMENT = Experiment(
    question="Does a cascade follow more prompts than one model of the same cost?",
    source="Imagen Video 2210.02303: small base video, then learned upsampling",
    world=World(sizes=(Bucket(13, 64, 64, 8),)),
    arms=(
        Arm("one_model", "13 frames of 64 px at once", cpu_minutes=36),
        Arm("base", "13 frames of 32 px", cpu_minutes=12, readings=(), waits_for=STAGES),
        Arm("upsampler", "32 to 64 px", cpu_minutes=12, readings=(), waits_for=STAGES),
        Arm("cascade", needs=("base", "upsampler"), waits_for=STAGES),
    ),
    claims=(
        Claim("the cascade follows more prompts", "cascade", "one_model"),
        Claim("the cascade gets nearer to real clips", "cascade", "one_model", "frechet_distance"),
    ),
)
