"""Edits by inversion: under its own caption a video comes back, under another one it is edited."""

from __future__ import annotations

import numpy as np
import pytest

from recaption.errors import UsageError
from recaption.scenes.renderer import render
from tests.stand_ins.small_samplers import HEIGHT_PX, WIDTH_PX, small_sampler
from train.diffusion.guidance import Guidance
from train.diffusion.process import DiffusionSettings
from train.sampling.conditioning_frames import text_to_video, video_to_video
from train.sampling.request import Request
from train.sampling.sampler import SolverSettings


@pytest.fixture(scope="module")
def video():
    return render(3, num_frames=9, height_px=32, width_px=48).frames_THWC[:, ::2, ::2]


def edit(sampler, video_THWC, text, *, source_text="abc", num_steps=8, strength=1.0, solver="auto", guidance=1.0):
    conditioning = video_to_video(video_THWC, strength, sampler.grid, source_text=source_text)
    settings = SolverSettings(num_steps=num_steps, guidance=guidance, solver=solver)
    (sampled,) = sampler.sample_requests([Request(text=text, conditioning=conditioning)], settings)
    return sampled.video_THWC.astype(int)


def decoded(sampler, video_THWC):
    shape = sampler.grid.token_shape(*video_THWC.shape[:3])
    return sampler.tokenizer.decode(sampler.tokenizer.encode(video_THWC), shape).astype(int)


@pytest.mark.parametrize(("stride", "solver"), [(1, "euler"), (4, "heun")])
def test_under_its_own_caption_the_video_comes_back_the_nearer_the_more_steps(video, stride, solver):
    sampler = small_sampler(stride, window_frames=9)
    aim = decoded(sampler, video)
    errors = [np.abs(edit(sampler, video, "abc", num_steps=n, solver=solver) - aim).mean() for n in (4, 12, 32)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 3
    drawn = edit(sampler, video, "abc", source_text=None, num_steps=32, strength=0.9, solver=solver)
    assert np.abs(drawn - aim).mean() > 5 * errors[2], "from drawn noise it does not come back"
    other = edit(sampler, video, "a", num_steps=32, solver=solver, guidance=3.0)
    assert np.abs(other - aim).mean() > 5 * errors[2], "another caption edits it"


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_diffusion_schedules_are_inverted_too(video, prediction):
    diffusion = DiffusionSettings(schedule="cosine", prediction=prediction, timesteps="uniform", discrete=True)
    sampler = small_sampler(diffusion=diffusion, window_frames=9)
    aim = decoded(sampler, video)
    errors = [np.abs(edit(sampler, video, "abc", num_steps=n, strength=0.6) - aim).mean() for n in (4, 32)]
    assert errors[1] < errors[0]


def test_an_edit_is_the_same_alone_and_beside_other_prompts_and_longer_than_a_window(video):
    sampler = small_sampler(window_frames=5, conditions=())
    conditioning = video_to_video(video, 1.0, sampler.grid, source_text="abc")
    edited = Request(text="abd", conditioning=conditioning)
    plain = Request(text="abd", conditioning=text_to_video(5, HEIGHT_PX, WIDTH_PX))
    settings = SolverSettings(num_steps=4, guidance=2.0)
    together = sampler.sample_requests([plain, edited, plain], settings)
    assert [len(one.video_THWC) for one in together] == [5, 9, 5]
    for request, one in ((edited, together[1]), (plain, together[0])):
        (alone,) = sampler.sample_requests([request], settings)
        assert np.abs(alone.video_THWC.astype(int) - one.video_THWC).max() <= 1
    windowed = small_sampler(window_frames=5)
    aim = decoded(windowed, video)
    assert np.abs(edit(windowed, video, "abc", num_steps=32) - aim).mean() < 6


def test_ancestral_sampling_cannot_be_inverted(video):
    sampler = small_sampler(diffusion=DiffusionSettings(schedule="cosine", prediction="v", timesteps="uniform"))
    with pytest.raises(UsageError, match="another than ancestral"):
        edit(sampler, video, "a", solver="ancestral")


def test_context_guidance_has_no_effect_on_an_edit_of_one_window(video):
    sampler = small_sampler(window_frames=9)
    conditioning = video_to_video(video, 1.0, sampler.grid, source_text="abc")
    settings = SolverSettings(num_steps=2, guidance=Guidance(scale=2.0, context=1.5))
    with pytest.raises(UsageError, match="context guidance has no effect"):
        sampler.sample_requests([Request(text="a", conditioning=conditioning)], settings)
