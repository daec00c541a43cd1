"""An upsampler that works frame by frame against one that sees time."""

from __future__ import annotations

from tests.evidence.experiment import Arm, Claim, Experiment

UPSAMPLER = "the temporally aligned upsampler (issue: Video LDM)"

EXPERIMENT = Experiment(
    question="Does an upsampler that sees neighbouring frames make videos that flicker less?",
    source="Video LDM 2304.08818: FVD 165.98 -> 45.39, FID 19.71 -> 19.85",
    arms=(
        Arm("frame_by_frame", readings=(), waits_for=UPSAMPLER),
        Arm("temporal", readings=(), waits_for=UPSAMPLER),
    ),
    claims=(
        Claim("seeing time, less flicker", "temporal", "frame_by_frame", "flicker"),
        Claim("seeing time, nearer to real clips", "temporal", "frame_by_frame", "frechet_distance"),
    ),
)
