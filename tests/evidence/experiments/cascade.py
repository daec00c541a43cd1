"""A cascade (base, temporal and spatial super-resolution) against one model, in pixel space, at equal CPU time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packing.buckets import Bucket
from tests.evidence.experiment import Arm, Claim, Experiment
from tests.evidence.readings import PromptFollowing
from tests.evidence.training import ArmRun
from tests.evidence.world import World
from train.sampling.cascade import Cascade
from train.sampling.request import Request
from train.sampling.solver_settings import SolverSettings

SMALL = {"patch": (1, 4, 4)}
"""Tokens of 4x4 px of frames of 16 px: 16 a frame, as tokens of 8x8 px of frames of 32 px are."""


def by_cascade(run: ArmRun, requests: Sequence[Request]) -> list[np.ndarray]:
    """Videos of the three stages, one after the other."""
    cascade = Cascade([run.prerequisites[name].sampler for name in ("base", "tsr", "ssr")])
    settings = SolverSettings(num_steps=20, guidance=3.0)
    return [sampled.video_THWC for sampled in cascade.sample_requests(requests, settings)]


EXPERIMENT = Experiment(
    question="Does a cascade follow more prompts than one model of the same cost?",
    source="Imagen Video 2210.02303: small base video, then learned upsampling",
    world=World(sizes=(Bucket(5, 32, 32, 8),), compressor="pixels"),
    arms=(
        Arm(
            "one_model",
            "5 frames of 32 px at once",
            dit={"patch": (1, 8, 8)},
            cpu_minutes=40,
            readings=(PromptFollowing(),),
        ),
        Arm(
            "base", "3 frames of 16 px", SMALL, compressor="pixels:stride=2,frame-stride=2", cpu_minutes=20, readings=()
        ),
        Arm("tsr", "to 5 frames", {**SMALL, "stage": "tsr"}, compressor="pixels:stride=2", cpu_minutes=8, readings=()),
        Arm("ssr", "to 32 px", {"patch": (1, 8, 8), "stage": "ssr"}, cpu_minutes=12, readings=()),
        Arm(
            "cascade",
            "base, tsr, ssr",
            checkpoint_of="ssr",
            needs=("base", "tsr"),
            readings=(PromptFollowing(sample=by_cascade),),
        ),
    ),
    claims=(
        Claim("the cascade follows more prompts", "cascade", "one_model"),
        Claim("the cascade moves as asked more often", "cascade", "one_model", "action"),
        Claim("the cascade gets nearer to real clips", "cascade", "one_model", "frechet_distance"),
    ),
)
