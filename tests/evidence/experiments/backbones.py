"""Backbones at equal parameters and equal tokens; another one is another line."""

from __future__ import annotations

from packing.buckets import Bucket
from tests.evidence.experiment import Arm, Claim, Experiment
from tests.evidence.readings import ClipLoss, PromptFollowing
from tests.evidence.world import World

NEW = {
    "uvit": {"backbone": "uvit", "depth": 6},
    "mdt": {"backbone": "mdt", "width": 224, "depth": 4, "mdt": {"decoder_depth": 2}},
    "diffit": {"backbone": "diffit", "width": 248, "depth": 5},
    "separable": {"backbone": "separable", "depth": 3},
}
"""Settings with about the weights of the DiT, 6.3 million; the harness refuses more than 10 % of difference."""

EXPERIMENT = Experiment(
    question="Which backbone learns most from the same tokens, and from the same CPU time, at equal parameters?",
    source="U-ViT 2209.12152, MDTv2 2303.14389, DiffiT 2312.02139, Imagen Video 2210.02303: each better than its baseline",
    world=World(sizes=(Bucket(5, 64, 64, 8), Bucket(5, 48, 80, 8)), held_out_sizes=(Bucket(5, 80, 48, 8),)),
    arms=(Arm("dit"), *(Arm(name, dit=settings) for name, settings in NEW.items())),
    claims=tuple(
        claim
        for name in NEW
        for claim in (
            Claim(f"{name} follows more prompts than dit after equal tokens", name, "dit"),
            Claim(f"{name} has a lower loss than dit after equal tokens", name, "dit", "loss"),
            Claim(f"{name} has a lower loss than dit after equal CPU time", name, "dit", "loss_at_equal_cpu"),
            Claim(f"{name} has a lower loss than dit at a size it never saw", name, "dit", "held_out_size_loss"),
        )
    ),
    readings=(PromptFollowing(), PromptFollowing(at_held_out_size=True), ClipLoss()),
    equal_parameters=0.1,
)
