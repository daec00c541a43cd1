"""Long takes by key frames: the plan, exact lengths, key frames that keep their pixels, and the errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.grid import Grid
from recaption.errors import UsageError
from tests.stand_ins.small_samplers import small_sampler
from train.sampling.conditioning_frames import image_to_video, loop, text_to_video
from train.sampling.key_frames import KeyFramePlan
from train.sampling.request import Request
from train.sampling.sizes import supported_length
from train.sampling.solver_settings import SolverSettings

QUICK = SolverSettings(num_steps=2, guidance=1.0)


def grid_of(stride, patch_frames=1):
    return Grid(frame_stride=stride, spatial_stride=8, patch=(patch_frames, 1, 1))


def take(num_frames, grid, **changes):
    conditioning = text_to_video(supported_length(num_frames, grid), 16, 24)
    conditioning = type(conditioning)(**{**vars(conditioning), "end": num_frames})
    return Request(**({"text": "a red circle", "conditioning": conditioning, "long": "keyframes"} | changes))


@pytest.mark.parametrize(
    ("num_frames", "window_frames", "stride", "factors", "num_key_frames"),
    [
        (5, 5, 1, (), 5),
        (9, 5, 1, (2,), 5),
        (17, 5, 1, (4,), 5),
        (65, 17, 1, (4,), 17),
        (100, 17, 1, (3, 3), 12),
        (257, 17, 1, (4, 4), 17),
        (65, 17, 4, (8,), 9),
    ],
)
def test_the_plan_has_the_fewest_levels_and_then_the_smallest_factors(
    num_frames, window_frames, stride, factors, num_key_frames
):
    plan = KeyFramePlan.of(num_frames, window_frames, grid_of(stride))
    assert (plan.factors, plan.num_key_frames) == (factors, num_key_frames)


@settings(max_examples=200, deadline=None)
@given(num_frames=st.integers(2, 700), tokens=st.integers(3, 12), stride=st.sampled_from([1, 2, 4]))
def test_a_plan_covers_every_frame_in_windows_that_fit_and_have_frames_to_sample(num_frames, tokens, stride):
    grid, window_frames = grid_of(stride), 1 + (tokens - 1) * stride
    plan = KeyFramePlan.of(num_frames, window_frames, grid)
    assert 1 <= plan.num_key_frames <= window_frames
    assert supported_length(plan.num_key_frames, grid) == plan.num_key_frames
    num_known = plan.num_key_frames
    for level, factor in enumerate(plan.factors):
        windows = plan.windows(level)
        assert factor % stride == 0
        assert factor >= 2 * stride
        assert windows[0].start == 0
        assert windows[-1].stop <= num_known
        for one, other in itertools.pairwise(windows):
            assert other.start == one.stop - 1
        for known in windows:
            assert 1 < 1 + factor * (len(known) - 1) <= window_frames
        num_known = 1 + factor * (windows[-1].stop - 1)
    assert num_known >= num_frames
    apart = math.prod(plan.factors)
    assert apart == 1 or (num_frames - 1) > (window_frames - 1), "what fits into one window needs no key frames"


@pytest.mark.parametrize("num_frames", [6, 9, 14, 30])
def test_a_take_has_exactly_its_frames_and_its_key_frames_keep_their_pixels(num_frames):
    sampler = small_sampler(1)
    plan = KeyFramePlan.of(num_frames, 5, sampler.grid)
    (sampled,) = sampler.sample_requests([take(num_frames, sampler.grid)], QUICK)
    key_frames = take(plan.num_key_frames, sampler.grid, long="windows")
    (alone,) = sampler.sample_requests([key_frames], QUICK)
    apart = math.prod(plan.factors)
    shown = -(-num_frames // apart)
    assert sampled.video_THWC.shape == (num_frames, 16, 24, 3)
    assert np.array_equal(sampled.video_THWC[::apart], alone.video_THWC[:shown])
    assert len(sampled.condition_mask_T) == num_frames
    assert not sampled.condition_mask_T.any()


def test_a_take_is_the_same_alone_and_among_others_and_its_windows_have_noise_of_their_own():
    sampler = small_sampler(1)
    asked = [take(17, sampler.grid), take(9, sampler.grid, text="blue"), take(17, sampler.grid), take(4, sampler.grid)]
    together = sampler.sample_requests(asked, QUICK)
    assert [len(one.video_THWC) for one in together] == [17, 9, 17, 4]
    for request, one in zip(asked[:2], together):
        (alone,) = sampler.sample_requests([request], QUICK)
        assert np.abs(alone.video_THWC.astype(int) - one.video_THWC).max() <= 1
    assert not np.array_equal(together[0].video_THWC, together[2].video_THWC), "a repeated request is another video"
    keys = []
    hook = sampler._sample_pack
    sampler._sample_pack = lambda states, *more: keys.extend(s.noise_key for s in states) or hook(states, *more)
    sampler.sample_requests([asked[0], asked[2]], QUICK)
    assert len(set(keys)) == len(keys) == 2 * KeyFramePlan.of(17, 5, sampler.grid).num_windows == 10


def test_with_a_frame_stride_of_4_the_key_frames_keep_their_pixels_too():
    sampler = small_sampler(4, window_frames=17)
    plan = KeyFramePlan.of(60, 17, sampler.grid)
    (sampled,) = sampler.sample_requests([take(60, sampler.grid)], QUICK)
    (alone,) = sampler.sample_requests([take(plan.num_key_frames, sampler.grid, long="windows")], QUICK)
    assert sampled.video_THWC.shape == (60, 16, 24, 3)
    assert np.array_equal(sampled.video_THWC[:: plan.factors[0]], alone.video_THWC[: -(-60 // plan.factors[0])])


def test_a_take_of_an_image_starts_with_the_image():
    sampler = small_sampler(1)
    image = np.full((16, 24, 3), (200, 40, 40), np.uint8)
    request = Request(text="it moves", conditioning=image_to_video(image, 12, sampler.grid), long="keyframes")
    (sampled,) = sampler.sample_requests([request], QUICK)
    assert len(sampled.video_THWC) == 12
    assert np.abs(sampled.video_THWC[0].astype(int) - image).max() <= 2
    assert sampled.condition_mask_T.tolist() == [True, *[False] * 11]


def test_errors_are_one_sentence_each():
    sampler = small_sampler(1)
    looped = loop(np.zeros((9, 16, 24, 3), np.uint8), 4, 2, sampler.grid)
    for made, changes, message in (
        (
            small_sampler(1, conditions=("none=0.5", "prefix=0.5")),
            {},
            "not trained for long keyframes prompts .* none=0.7 keyframes=0.3",
        ),
        (
            sampler,
            {"conditioning": looped},
            "in mode loop: it is `windows`, or `keyframes` in the modes text and image",
        ),
        (sampler, {"long": "other"}, "long = other in mode text"),
        (
            small_sampler(1, patch=(2, 1, 1), window_frames=6),
            {},
            "span 2 latent frames, so a single key frame fills none",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            made.sample_requests([take(30, made.grid, **changes)], QUICK)
