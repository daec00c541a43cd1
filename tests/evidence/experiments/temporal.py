"""Temporal layers added to a frozen image model against training everything, at equal steps on videos."""

from __future__ import annotations

from packing.buckets import Bucket
from tests.evidence.experiment import Arm, Claim, Experiment
from tests.evidence.readings import PromptFollowing
from tests.evidence.world import World

FRAMES = {"patch": (1, 2, 2)}
"""Every frame is coded alone, in tokens of 16x16 px: an image is a video of one frame."""

EXPERIMENT = Experiment(
    question="Is it enough to train temporal layers on top of a frozen image model?",
    source="Video LDM 2304.08818: FVD 534 with image pre-training and temporal layers, 1155 for everything end to end",
    world=World(sizes=(Bucket(5, 32, 32, 8),), compressor="patch:24,whitening=0.5,frame-stride=1"),
    arms=(
        Arm("images", "single frames", FRAMES, plan={"max_latent_frames": ("1",)}, readings=()),
        Arm("everything", "all weights of the image model, then videos", FRAMES, start_from="images"),
        Arm("from_scratch", "videos only, twice the steps", FRAMES, trainer={"num_steps": 12000}),
        Arm("temporal_layers", "the image model frozen", {**FRAMES, "backbone": "temporal"}, start_from="images"),
    ),
    claims=(
        Claim("a model that begins with images follows more prompts", "everything", "from_scratch"),
        Claim("temporal layers alone follow at most 5 % less", "temporal_layers", "everything", margin=-0.05),
        Claim(
            "temporal layers alone move as asked as often, up to 5 %", "temporal_layers", "everything", "action", -0.05
        ),
        Claim("temporal layers alone get nearer to real clips", "temporal_layers", "everything", "frechet_distance"),
    ),
    readings=(PromptFollowing(),),
)
