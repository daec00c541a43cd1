"""Temporal layers added to a frozen image model against training everything, at equal steps on videos."""

from __future__ import annotations

from tests.evidence.experiment import Arm, Claim, Experiment

SHARED = {"patch": (1, 1, 1)}
"""A token of one latent frame: an image is a video of one token frame."""

EXPERIMENT = Experiment(
    question="Is it enough to train temporal layers on top of a frozen image model?",
    source="Video LDM 2304.08818: image pre-training and temporal layers FVD 534 against 1155 for everything",
    arms=(
        Arm("images", "first frames only", dit=SHARED, plan={"max_latent_frames": ("1",)}, readings=()),
        Arm("everything", "all weights of the image model", dit=SHARED, start_from="images"),
        Arm("from_scratch", "videos only, twice the steps", dit=SHARED, trainer={"num_steps": 8000}),
        Arm(
            "temporal_layers",
            "the image model frozen",
            dit=SHARED,
            start_from="images",
            waits_for="temporal layers (train/backbones/temporal.py)",
        ),
    ),
    claims=(
        Claim("a model that begins with images follows more prompts", "everything", "from_scratch"),
        Claim("temporal layers alone follow at most 5 % less", "temporal_layers", "everything", margin=-0.05),
        Claim("temporal layers alone get as near to real clips", "temporal_layers", "everything", "frechet_distance"),
        Claim(
            "temporal layers alone move as asked as often, up to 5 %", "temporal_layers", "everything", "action", -0.05
        ),
    ),
)
