"""Students of 8, 4 and 2 steps against their teacher at as many steps."""

from __future__ import annotations

from tests.evidence.experiment import Arm, Claim, Experiment
from tests.evidence.readings import ClipLoss, PromptFollowing

STEPS = (16, 8, 4, 2)
HALVING = {"num_steps": 800, "lr": 3e-4, "final_lr_fraction": 0.0, "ema_decay": 0.99}


def at(num_steps: int) -> tuple[PromptFollowing]:
    return (PromptFollowing(num_steps=num_steps, guidance=3.0),)


def student(num_steps: int) -> Arm:
    """Half the steps of the student before it; the first one halves the guided teacher."""
    return Arm(
        f"student_{num_steps}_steps",
        dit={"distill": {"stage": "halve", "num_steps": num_steps}, "caption_dropout": 0.0},
        trainer=HALVING,
        start_from=f"student_{2 * num_steps}_steps" if num_steps < STEPS[0] else "guided",
        readings=at(num_steps),
    )


EXPERIMENT = Experiment(
    question="Does a student of few steps keep what its teacher does in many?",
    source="Salimans and Ho 2202.00512; Imagen Video 2210.02303: 8 steps as good as 256, 18 times as fast",
    arms=(
        Arm("teacher", "20 steps, guidance 3 by two calls", readings=(PromptFollowing(), ClipLoss())),
        *(Arm(f"teacher_{n}_steps", checkpoint_of="teacher", readings=at(n)) for n in STEPS[1:]),
        Arm(
            "guided",
            "guidance in one call",
            dit={"distill": {"stage": "guidance"}, "caption_dropout": 0.0},
            trainer=HALVING,
            start_from="teacher",
            readings=at(20),
        ),
        *(student(n) for n in STEPS),
    ),
    claims=(
        Claim("20 steps of the solver follow more prompts than 2", "teacher", "teacher_2_steps"),
        Claim(
            "8 steps of a student follow at most 5 % less than 20 of its teacher",
            "student_8_steps",
            "teacher",
            margin=-0.05,
        ),
        Claim(
            "8 steps of a student get as near to real clips", "student_8_steps", "teacher", "frechet_distance", -0.01
        ),
        *(
            Claim(
                f"a student follows more prompts in {n} steps than its teacher",
                f"student_{n}_steps",
                f"teacher_{n}_steps",
            )
            for n in STEPS[1:]
        ),
    ),
)
