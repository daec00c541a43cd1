"""Rectified flow: draws belong to clips and not to rows; the loss is the same for any arrangement of samples."""

from __future__ import annotations

import pytest
import torch

from recaption.errors import UsageError
from train.attention import Segments
from train.flow import (
    PathSettings,
    chance,
    draw_path,
    flow_loss,
    generator_for,
    guided,
    integrate,
    path_point,
    sampling_times,
    shifted,
)

CLIPS = ("a", "b", "c")
LENGTHS = (4, 2, 6)


def test_draws_do_not_depend_on_the_row_a_clip_lies_in():
    settings = PathSettings(shift=2.0, shift_tokens=4)
    together = draw_path(CLIPS, Segments.from_lengths(LENGTHS), 3, settings, key=(0, 7))
    start = 0
    for s, (clip_id, length) in enumerate(zip(CLIPS, LENGTHS)):
        alone = draw_path([clip_id], Segments.from_lengths([length]), 3, settings, key=(0, 7))
        assert torch.equal(alone.timestep_S[0], together.timestep_S[s])
        assert torch.equal(alone.noise_LD, together.noise_LD[start : start + length])
        start += length
    other_step = draw_path(CLIPS, Segments.from_lengths(LENGTHS), 3, settings, key=(0, 8))
    assert not torch.equal(other_step.noise_LD, together.noise_LD)


def test_keys_are_told_apart_by_type_and_by_place():
    def first(*key):
        return float(torch.rand((), generator=generator_for(*key)))

    values = [first(1, "a"), first("1", "a"), first("a", 1), first(1, "a", ""), first("1a")]
    assert len(set(values)) == len(values)
    assert first(1, "a") == first(1, "a")


def test_chance_is_repeatable_and_near_its_share():
    outcomes = [chance(0.3, 0, "drop", i) for i in range(400)]
    assert outcomes == [chance(0.3, 0, "drop", i) for i in range(400)]
    assert 0.2 < sum(outcomes) / 400 < 0.4
    assert not any(chance(0.0, i) for i in range(50))
    assert all(chance(1.0, i) for i in range(50))


def test_longer_clips_get_noisier_timesteps():
    settings = PathSettings(shift=1.0, shift_tokens=100)
    assert settings.shift_of(400) == pytest.approx(2.0)
    assert PathSettings(shift=3.0).shift_of(400) == 3.0
    ids = [str(i) for i in range(200)]
    means = []
    for length in (1, 16):
        segments = Segments.from_lengths([length] * 200)
        draws = draw_path(ids, segments, 1, PathSettings(shift_tokens=1), key=(0,))
        assert float(draws.timestep_S.min()) > 0
        assert float(draws.timestep_S.max()) < 1
        means.append(float(draws.timestep_S.mean()))
    assert means[0] == pytest.approx(0.5, abs=0.05)
    assert means[1] > 0.68
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.75, 1.0]


def test_path_ends_are_clean_and_noise_and_the_velocity_joins_them():
    segments = Segments.from_lengths([2, 3])
    clean = torch.randn(5, 4)
    draws = draw_path(["a", "b"], segments, 4, PathSettings(), key=(0,))
    at = {}
    for t in (0.0, 1.0):
        at[t] = path_point(clean, type(draws)(torch.full((2,), t), draws.noise_LD), segments)
    assert torch.equal(at[0.0].x_LD, clean)
    assert torch.equal(at[1.0].x_LD, draws.noise_LD)
    torch.testing.assert_close(at[0.0].x_LD + at[0.0].target_LD, draws.noise_LD)


@pytest.mark.parametrize("norm", ["sample", "token"])
def test_any_arrangement_into_rows_gives_the_same_gradient(norm):
    torch.manual_seed(0)
    weight = torch.randn(3, 3, requires_grad=True)
    clean = {clip: torch.randn(length, 3) for clip, length in zip(CLIPS, LENGTHS)}

    def gradient(rows):
        total_loss, total_weight = torch.zeros(()), torch.zeros(())
        for row in rows:
            segments = Segments.from_lengths([len(clean[c]) for c in row])
            row_LD = torch.cat([clean[c] for c in row])
            point = path_point(row_LD, draw_path(row, segments, 3, PathSettings(), key=(0, 5)), segments)
            loss_sum, loss_weight = flow_loss(point.x_LD @ weight, point.target_LD, segments, norm=norm)
            total_loss, total_weight = total_loss + loss_sum, total_weight + loss_weight
        return torch.autograd.grad(total_loss / total_weight, weight)[0]

    one_row = gradient([["a", "b", "c"]])
    torch.testing.assert_close(gradient([["c", "a"], ["b"]]), one_row)
    torch.testing.assert_close(gradient([["a"], ["b"], ["c"]]), one_row)


def test_sample_norm_counts_clips_and_token_norm_counts_tokens():
    segments = Segments.from_lengths([1, 3])
    velocity, target = torch.zeros(4, 2), torch.tensor([[2.0, 2.0], [1, 1], [1, 1], [1, 1]])
    assert [float(x) for x in flow_loss(velocity, target, segments, norm="sample")] == [5.0, 2.0]
    assert [float(x) for x in flow_loss(velocity, target, segments, norm="token")] == [7.0, 4.0]
    with pytest.raises(UsageError, match="choose one of sample, token"):
        flow_loss(velocity, target, segments, norm="mean")


def test_only_counted_tokens_enter_loss_and_weight():
    segments = Segments.from_lengths([2, 3, 1])
    velocity, target = torch.zeros(6, 1), torch.tensor([[1.0], [9], [2], [9], [4], [9]])
    counted = torch.tensor([True, False, True, False, True, False])
    by_norm = {
        norm: flow_loss(velocity, target, segments, norm=norm, counted_L=counted) for norm in ("sample", "token")
    }
    assert [float(x) for x in by_norm["sample"]] == [1 + (4 + 16) / 2, 2], "the third sample has no counted token"
    assert [float(x) for x in by_norm["token"]] == [1 + 4 + 16, 3]
    velocity[1] = torch.nan
    assert torch.isfinite(flow_loss(velocity, target, segments, norm="sample", counted_L=counted)[0])


def test_solvers_follow_the_field_and_heun_is_closer():
    """dx/dt = x has x(0) = x(1) / e; the error shrinks with the order of the solver."""
    segments = Segments.from_lengths([2, 1])
    x1 = torch.ones(3, 2)
    errors = {}
    for solver in ("euler", "heun"):
        times = sampling_times(8, segments, PathSettings(shift_tokens=1))
        x0 = integrate(lambda x, t: x, x1, segments, times, solver=solver)
        errors[solver] = float((x0 - torch.e**-1).abs().max())
    assert errors["euler"] < 0.1
    assert errors["heun"] < errors["euler"] / 10
    with pytest.raises(UsageError, match="choose one of euler, heun"):
        integrate(lambda x, t: x, x1, segments, sampling_times(1, segments, PathSettings()), solver="dpm")


def test_a_straight_path_is_sampled_exactly_in_one_step():
    segments = Segments.from_lengths([2, 3])
    clean, noise = torch.randn(5, 4), torch.randn(5, 4)
    times = sampling_times(1, segments, PathSettings())
    torch.testing.assert_close(integrate(lambda x, t: noise - clean, noise, segments, times), clean)


def test_each_sample_keeps_its_own_schedule():
    times = sampling_times(4, Segments.from_lengths([1, 4]), PathSettings(shift_tokens=1))
    assert times.shape == (5, 2)
    assert times[0].tolist() == [1, 1]
    assert times[-1].tolist() == [0, 0]
    assert times[2].tolist() == pytest.approx([0.5, 2 / 3])
    with pytest.raises(UsageError, match="num_steps"):
        sampling_times(0, Segments.from_lengths([1]), PathSettings())


def test_guidance_of_one_is_the_prompt_and_of_zero_is_no_prompt():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert [float(guided(conditional, unconditional, g)) for g in (0.0, 1.0, 3.0)] == [1.0, 2.0, 4.0]
