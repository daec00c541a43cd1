"""Forward process and loss: noise belongs to clips and not to packs; the gradient does not depend on the packing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from recaption.errors import UsageError
from train.diffusion.loss import diffusion_loss
from train.diffusion.process import DiffusionSettings, add_noise, sample_timesteps_and_noise
from train.diffusion.rng import seeded_bernoulli, seeded_generator
from train.diffusion.timestep_shift import shifted
from train.layers.segments import Segments

CLIPS = ("a", "b", "c")
LENGTHS = (4, 2, 6)


def test_timestep_and_noise_do_not_depend_on_the_pack():
    settings = DiffusionSettings(shift=2.0, shift_tokens=4)
    together = sample_timesteps_and_noise(CLIPS, Segments.from_lengths(LENGTHS), 3, settings, key=(0, 7))
    start = 0
    for s, (clip_id, length) in enumerate(zip(CLIPS, LENGTHS)):
        alone = sample_timesteps_and_noise([clip_id], Segments.from_lengths([length]), 3, settings, key=(0, 7))
        assert torch.equal(alone.timestep_S[0], together.timestep_S[s])
        assert torch.equal(alone.noise_LD, together.noise_LD[start : start + length])
        start += length
    other_step = sample_timesteps_and_noise(CLIPS, Segments.from_lengths(LENGTHS), 3, settings, key=(0, 8))
    assert not torch.equal(other_step.noise_LD, together.noise_LD)


def test_keys_differ_by_type_and_by_order():
    def first(*key):
        return float(torch.rand((), generator=seeded_generator(*key)))

    values = [first(1, "a"), first("1", "a"), first("a", 1), first(1, "a", ""), first("1a")]
    assert len(set(values)) == len(values)
    assert first(1, "a") == first(1, "a")


def test_seeded_bernoulli_is_repeatable_and_near_its_probability():
    outcomes = [seeded_bernoulli(0.3, 0, "drop", i) for i in range(400)]
    assert outcomes == [seeded_bernoulli(0.3, 0, "drop", i) for i in range(400)]
    assert 0.2 < sum(outcomes) / 400 < 0.4
    assert not any(seeded_bernoulli(0.0, i) for i in range(50))
    assert all(seeded_bernoulli(1.0, i) for i in range(50))


def test_longer_clips_get_noisier_timesteps():
    settings = DiffusionSettings(shift=1.0, shift_tokens=100)
    assert settings.shift_of(400) == pytest.approx(2.0)
    assert DiffusionSettings(shift=3.0).shift_of(400) == 3.0
    ids = [str(i) for i in range(200)]
    means = []
    for length in (1, 16):
        segments = Segments.from_lengths([length] * 200)
        draws = sample_timesteps_and_noise(ids, segments, 1, DiffusionSettings(shift_tokens=1), key=(0,))
        assert float(draws.timestep_S.min()) > 0
        assert float(draws.timestep_S.max()) < 1
        means.append(float(draws.timestep_S.mean()))
    assert means[0] == pytest.approx(0.5, abs=0.05)
    assert means[1] > 0.68
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.75, 1.0]


def test_noised_tokens_are_clean_at_0_and_noise_at_1_and_differ_by_the_velocity():
    segments = Segments.from_lengths([2, 3])
    clean = torch.randn(5, 4)
    draws = sample_timesteps_and_noise(["a", "b"], segments, 4, DiffusionSettings(), key=(0,))
    at = {}
    for t in (0.0, 1.0):
        at[t] = add_noise(clean, type(draws)(torch.full((2,), t), draws.noise_LD), segments)
    assert torch.equal(at[0.0].x_LD, clean)
    assert torch.equal(at[1.0].x_LD, draws.noise_LD)
    torch.testing.assert_close(at[0.0].x_LD + at[0.0].target_LD, draws.noise_LD)


OBJECTIVES = {
    "flow": DiffusionSettings(shift_tokens=4),
    "flow x0": DiffusionSettings(prediction="x0", snr_gamma=5.0),
    "cosine v": DiffusionSettings(schedule="cosine", prediction="v", snr_gamma=5.0, timesteps="uniform", discrete=True),
    "linear epsilon": DiffusionSettings(schedule="linear", prediction="epsilon", snr_gamma=5.0, shift_rule="area_time"),
    "zero terminal x0": DiffusionSettings(schedule="scaled_linear", prediction="x0", zero_terminal_snr=True),
}


@pytest.mark.parametrize("norm", ["sample", "token", "tokens^0.5"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_does_not_depend_on_the_packing(norm, objective):
    torch.manual_seed(0)
    diffusion = OBJECTIVES[objective]
    weight = torch.randn(3, 3, requires_grad=True)
    clean = {clip: torch.randn(length, 3) for clip, length in zip(CLIPS, LENGTHS)}
    shapes = {"a": (1, 2, 2), "b": (2, 1, 1), "c": (1, 3, 2)}

    def gradient(packs):
        total_loss, total_weight = torch.zeros(()), torch.zeros(())
        for pack in packs:
            segments = Segments.from_lengths([len(clean[c]) for c in pack])
            clean_LD = torch.cat([clean[c] for c in pack])
            draws = sample_timesteps_and_noise(
                pack, segments, 3, diffusion, key=(0, 5), token_shapes=[shapes[c] for c in pack]
            )
            noised = add_noise(clean_LD, draws, segments, diffusion)
            loss_sum, loss_weight = diffusion_loss(
                noised.x_LD @ weight, noised.target_LD, segments, norm=norm, weight_S=noised.weight_S
            )
            assert not loss_weight.requires_grad
            total_loss, total_weight = total_loss + loss_sum, total_weight + loss_weight
        return torch.autograd.grad(total_loss / total_weight, weight)[0]

    one_pack = gradient([["a", "b", "c"]])
    assert one_pack.abs().max() > 0.01, "nothing to compare"
    torch.testing.assert_close(gradient([["c", "a"], ["b"]]), one_pack, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient([["a"], ["b"], ["c"]]), one_pack, rtol=1e-5, atol=1e-6)


def test_sample_norm_counts_clips_and_token_norm_counts_tokens():
    segments = Segments.from_lengths([1, 3])
    velocity, target = torch.zeros(4, 2), torch.tensor([[2.0, 2.0], [1, 1], [1, 1], [1, 1]])
    assert [float(x) for x in diffusion_loss(velocity, target, segments, norm="sample")] == [5.0, 2.0]
    assert [float(x) for x in diffusion_loss(velocity, target, segments, norm="token")] == [7.0, 4.0]
    one_and_root_of_three = [float(x) for x in diffusion_loss(velocity, target, segments, norm="tokens^0.5")]
    assert one_and_root_of_three == pytest.approx([4 + 3**0.5, 1 + 3**0.5])
    for wrong in ("mean", "tokens^", "tokens^-1", "tokens^nan"):
        with pytest.raises(UsageError, match="choose one of sample, token"):
            diffusion_loss(velocity, target, segments, norm=wrong)


def test_only_tokens_of_the_loss_mask_enter_loss_and_weight():
    segments = Segments.from_lengths([2, 3, 1])
    velocity, target = torch.zeros(6, 1), torch.tensor([[1.0], [9], [2], [9], [4], [9]])
    mask = torch.tensor([True, False, True, False, True, False])
    by_norm = {
        norm: diffusion_loss(velocity, target, segments, norm=norm, loss_mask_L=mask) for norm in ("sample", "token")
    }
    assert [float(x) for x in by_norm["sample"]] == [1 + (4 + 16) / 2, 2], "the third sample has no token in the mask"
    assert [float(x) for x in by_norm["token"]] == [1 + 4 + 16, 3]
    velocity[1] = torch.nan
    assert torch.isfinite(diffusion_loss(velocity, target, segments, norm="sample", loss_mask_L=mask)[0])


def test_discrete_uniform_timesteps_are_ddpms():
    diffusion = DiffusionSettings(schedule="linear", prediction="epsilon", timesteps="uniform", discrete=True)
    segments = Segments.from_lengths([1] * 400)
    steps = sample_timesteps_and_noise([str(i) for i in range(400)], segments, 1, diffusion, key=(0,)).timestep_S * 1000
    torch.testing.assert_close(steps, steps.round(), rtol=1e-6, atol=0)
    assert 1 <= steps.min() < 50
    assert 950 < steps.max() <= 1000
    assert float(steps.mean()) == pytest.approx(500, abs=45)


def test_shift_rules_have_the_values_of_their_papers():
    def shift(rule, num_tokens, shape=None, **more):
        return DiffusionSettings(shift_rule=rule, **more).shift_of(num_tokens, shape)

    assert shift("sqrt_tokens", 4096, shift_tokens=1024, shift=3.0) == 6.0
    assert [shift("exp_tokens", n) for n in (256, 4096)] == pytest.approx([math.exp(0.5), math.exp(1.15)])
    by_area = [shift("area_time", 0, shape) for shape in ((1, 16, 16), (1, 64, 64), (9, 16, 16))]
    assert by_area == pytest.approx([1, 3, 3])
    with pytest.raises(ValueError, match="token_shapes"):
        shift("area_time", 256)


def test_settings_that_are_invalid_or_without_effect_are_refused():
    for match, settings in {
        "unknown schedule 'sine'": {"schedule": "sine"},
        "prediction 'velocity' does not go with schedule 'cosine': use epsilon or x0 or v": {"schedule": "cosine"},
        "prediction 'epsilon' does not go with schedule 'flow': use velocity or x0": {"prediction": "epsilon"},
        "'epsilon' does not go with zero_terminal_snr": {
            "schedule": "linear", "prediction": "epsilon", "zero_terminal_snr": True,
        },
        "ends in pure noise anyway": {"zero_terminal_snr": True},
        "'flow' has no discrete steps": {"discrete": True},
        "shift_tokens has no effect": {"shift_tokens": 4, "shift_rule": "exp_tokens"},
        "have no effect with timesteps 'uniform'": {"timesteps": "uniform", "timestep_mean": 1.0},
        "first step of sampling is never trained": {
            "schedule": "linear", "prediction": "v", "zero_terminal_snr": True, "snr_gamma": 5.0,
        },
        "must be positive": {"timestep_std": 0.0},
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=match):
            DiffusionSettings(**settings).check()
    for settings in OBJECTIVES.values():
        settings.check()


def test_the_config_of_a_checkpoint_has_every_setting_and_rebuilds_them():
    settings = DiffusionSettings(schedule="cosine", prediction="v")
    config = dataclasses.asdict(settings)
    assert config.keys() == {field.name for field in dataclasses.fields(DiffusionSettings)}
    assert DiffusionSettings(**config) == settings
