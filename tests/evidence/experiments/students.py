"""Students of 8, 4 and 2 steps against their teacher at as many steps."""

from __future__ import annotations

from tests.evidence.experiment import Arm, Claim, Experiment
from tests.evidence.readings import ClipLoss, PromptFollowing

DISTILLATION = "progressive distillation (train/generator/distillation.py)"


def at(num_steps: int, guidance: float) -> tuple[PromptFollowing]:
    return (PromptFollowing(num_steps=num_steps, guidance=guidance),)


EXPERIMENT = Experiment(
    question="Does a student of few steps keep what its teacher does in many?",
    source="Salimans and Ho 2202.00512; Imagen Video 2210.02303: 8 steps as good as 256, 18 times as fast",
    arms=(
        Arm("teacher", "20 steps, guidance 3", readings=(PromptFollowing(), ClipLoss())),
        *(
            Arm(f"teacher_{n}_steps", f"the teacher at {n} steps", checkpoint_of="teacher", readings=at(n, 3.0))
            for n in (8, 4, 2)
        ),
        Arm("student_8_steps", start_from="teacher", readings=at(8, 1.0), waits_for=DISTILLATION),
        Arm("student_4_steps", start_from="student_8_steps", readings=at(4, 1.0), waits_for=DISTILLATION),
        Arm("student_2_steps", start_from="student_4_steps", readings=at(2, 1.0), waits_for=DISTILLATION),
    ),
    claims=(
        Claim("20 steps of the solver follow more prompts than 2", "teacher", "teacher_2_steps"),
        Claim(
            "a student of 8 steps follows at most 5 % of the prompts less than its teacher of 20",
            "student_8_steps",
            "teacher",
            margin=-0.05,
        ),
        *(
            Claim(
                f"a student follows more prompts in {n} steps than its teacher",
                f"student_{n}_steps",
                f"teacher_{n}_steps",
            )
            for n in (8, 4, 2)
        ),
    ),
)
