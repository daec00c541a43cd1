"""Progressive distillation: identities of the targets, students that start as their teachers, and how they are sampled."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recaption.errors import UsageError
from tests.train.generator.test_task import SETTINGS, fakes, make_task  # noqa: F401
from train.diffusion.process import DiffusionSettings, TimestepsAndNoise, add_noise
from train.diffusion.solvers import integrate, sampling_timesteps
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.generator.distillation import two_step_target
from train.generator.settings import DistillSettings
from train.layers.segments import Segments
from train.sampling.conditioning_frames import text_to_video
from train.sampling.request import Request
from train.sampling.sampler import Sampler
from train.sampling.solver_settings import SolverSettings

SEGMENTS = Segments.from_lengths([3, 2])
FLOW = DiffusionSettings()
COSINE_V = DiffusionSettings(schedule="cosine", prediction="v")
TRAINER = TrainerSettings(num_steps=2, lr=1e-2, warmup_steps=0, device="cpu", ema_decay=0.5)


def some_teacher(x_LD, timestep_S):
    """A network that is no constant in either argument."""
    return torch.tanh(x_LD.flip(1) * 0.7 - 0.3) + timestep_S.to(x_LD.dtype)[SEGMENTS.segment_ids_L, None].sin()


def at_times(diffusion, first, seed=0):
    """x at the first of three neighbouring times of a grid of 8 steps, and those times."""
    generator = torch.Generator().manual_seed(seed)
    times_KS = sampling_timesteps(8, SEGMENTS, diffusion).double()
    clean_LD, noise_LD = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    times = tuple(times_KS[first + number] for number in range(3))
    return add_noise(clean_LD, TimestepsAndNoise(times[0], noise_LD), SEGMENTS, diffusion).x_LD, times


@pytest.mark.parametrize("diffusion", [FLOW, COSINE_V, dataclasses.replace(COSINE_V, prediction="x0")], ids=str)
@pytest.mark.parametrize("first", [0, 2, 6])
def test_one_step_to_the_target_ends_where_two_steps_of_the_teacher_end(diffusion, first):
    """To 1e-6, the last step (to t = 0) included."""
    x_LD, times = at_times(diffusion, first)
    solver = "euler" if diffusion.schedule == "flow" else "ddim"
    target_LD = two_step_target(some_teacher, x_LD, times, SEGMENTS, diffusion)
    two = integrate(some_teacher, x_LD, SEGMENTS, torch.stack(times), diffusion=diffusion, solver=solver)
    one = integrate(
        lambda x, t: target_LD, x_LD, SEGMENTS, torch.stack([times[0], times[2]]), diffusion=diffusion, solver=solver
    )
    assert (one - two).abs().max() < 1e-6
    assert (target_LD - some_teacher(x_LD, times[0])).abs().max() > 1e-3, "nothing to distil"


def test_a_teacher_that_says_the_same_at_all_times_is_its_own_target():
    x_LD, times = at_times(FLOW, 2)
    velocity_LD = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(two_step_target(lambda x, t: velocity_LD, x_LD, times, SEGMENTS, FLOW), velocity_LD)
    diffusion = dataclasses.replace(COSINE_V, prediction="x0")
    x_LD, times = at_times(diffusion, 2)
    clean_LD = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(two_step_target(lambda x, t: clean_LD, x_LD, times, SEGMENTS, diffusion), clean_LD)


def test_at_the_last_step_the_target_is_the_second_answer_of_the_teacher():
    diffusion = dataclasses.replace(COSINE_V, prediction="x0")
    x_LD, times = at_times(diffusion, 6)
    answers = []

    def teacher(x, t):
        answers.append(some_teacher(x, t))
        return answers[-1]

    torch.testing.assert_close(two_step_target(teacher, x_LD, times, SEGMENTS, diffusion), answers[1])


@pytest.fixture
def teacher(tmp_path):
    folder = str(tmp_path / "teacher")
    train(make_task(), dataclasses.replace(TRAINER, num_steps=4), folder, progress=False)
    return folder


def distilled(teacher, stage, **settings):
    return make_task(init_from=teacher, distill=DistillSettings(stage=stage, **settings))


@pytest.mark.parametrize("stage", ["guidance", "halve"])
def test_a_student_starts_as_its_teacher_and_only_it_is_trained(teacher, tmp_path, stage):
    task = distilled(teacher, stage)
    own = {name.replace("scalar", ""): value for name, value in task.objective.teacher.state_dict().items()}
    student = task.model.state_dict()
    assert all(torch.equal(student[name], value) for name, value in own.items())
    before = {name: value.clone() for name, value in task.objective.teacher.state_dict().items()}
    result = train(task, TRAINER, str(tmp_path / stage), progress=False)
    assert result.steps == 2
    assert all(torch.equal(before[name], value) for name, value in task.objective.teacher.state_dict().items())
    assert any(not torch.equal(before[name], task.model.state_dict()[name]) for name in before)


def test_a_guided_student_starts_off_by_the_guidance_alone(teacher):
    """At scale 1 the loss of a fresh student is 0; at 5 it is what guidance changes."""
    losses = {}
    for scale in (1.0, 5.0):
        task = distilled(teacher, "guidance", guidance=(scale, scale))
        losses[scale] = float(task.loss(next(task.batches(0, 0, 1)), step=0, seed=0).loss_sum.detach())
    assert losses[1.0] < 1e-10 < losses[5.0]


def test_halvings_go_on_from_each_other_and_are_resumed(teacher, tmp_path):
    guided, eight, four = (str(tmp_path / name) for name in ("guided", "eight", "four"))
    train(distilled(teacher, "guidance", guidance=(1.0, 5.0)), TRAINER, guided, progress=False)
    train(distilled(guided, "halve", num_steps=8), TRAINER, eight, progress=False)
    again = train(
        distilled(guided, "halve", num_steps=8), dataclasses.replace(TRAINER, num_steps=3), eight, progress=False
    )
    assert again.resumed_from == 2
    train(distilled(eight, "halve", num_steps=4), TRAINER, four, progress=False)
    with pytest.raises(UsageError, match="takes 8 steps: halve it to 4, not 2"):
        distilled(eight, "halve", num_steps=2)
    with pytest.raises(UsageError, match="is distilled already: guidance comes first"):
        distilled(eight, "guidance")
    sampler = Sampler.from_checkpoint(four)
    calls = []
    sampler.model.register_forward_pre_hook(lambda model, args: calls.append(args[0]))
    request = Request(text="a red field", conditioning=text_to_video(5, 16, 16))
    sampler.sample_requests([request], SolverSettings(guidance=3.0))
    assert [len(call.segments) for call in calls] == [1] * 4, (
        "guidance in one call, and as many steps as it was trained for"
    )
    assert calls[0].scalars["guidance"].tolist() == [3.0]
    for settings, message in {
        SolverSettings(num_steps=3, guidance=3.0): "was distilled to 4 steps, not 3: sample it with 4 or 2 or 1",
        SolverSettings(guidance=7.0): "guidance scales from 1 to 5, not 7",
        SolverSettings(guidance=3.0, solver="heun"): "distilled for steps of euler, not of heun",
    }.items():
        with pytest.raises(UsageError, match=message):
            sampler.sample_requests([request], settings)


def test_the_times_of_a_halving_are_those_of_its_teachers_grid(teacher):
    task = distilled(teacher, "halve", num_steps=4)
    batch = next(task.batches(0, 0, 1))
    draws = task.prepared(batch, step=0, seed=0).draws
    grid_KS = sampling_timesteps(8, batch.segments, SETTINGS.diffusion, token_shapes=batch.token_shapes)
    for sample in range(len(batch.segments)):
        found = [
            float(times_S[sample]) for times_S in (draws.noise.timestep_S, draws.times["middle"], draws.times["next"])
        ]
        start = [float(t) for t in grid_KS[:, sample]].index(found[0])
        assert start % 2 == 0
        assert found == [float(grid_KS[start + number, sample]) for number in range(3)]


def test_settings_that_make_no_sense_are_refused(teacher):
    for match, changes in {
        "unknown distill stage": {"distill": DistillSettings(stage="third")},
        "name its checkpoint with --init-from": {"distill": DistillSettings(stage="halve"), "init_from": ""},
        "must be at least 1": {"distill": DistillSettings(stage="halve", num_steps=0)},
        "1 <= low <= high": {"distill": DistillSettings(stage="guidance", guidance=(3.0, 2.0))},
        "predicts epsilon": {
            "distill": DistillSettings(stage="halve"),
            "diffusion": DiffusionSettings(schedule="cosine", prediction="epsilon"),
        },
    }.items():
        with pytest.raises(UsageError, match=match):
            make_task(**({"init_from": teacher} | changes))
