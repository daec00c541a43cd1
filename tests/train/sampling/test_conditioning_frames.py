"""Sampling with conditioning frames, for every mode: known frames are reproduced, sampled frames continue them.

Two models in place of a trained one: a random transformer, and an oracle that interpolates linearly in time through the
conditioning tokens. With the oracle a conditioning frame at the wrong time shows at once.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from packing.buckets import Bucket
from packing.grid import Grid
from recaption.errors import UsageError
from train.backbones.registry import build
from train.compressors.registry import load
from train.diffusion.frame_conditioning import DEFAULT_CONDITIONS
from train.diffusion.process import DiffusionSettings
from train.sampling import conditioning_frames as conditioning
from train.sampling.request import LatentTokenizer, Request
from train.sampling.sampler import Sampler
from train.sampling.solver_settings import SolverSettings
from train.text.encoder import TextEncoder

GRID = Grid(frame_stride=4, spatial_stride=8, patch=(1, 1, 1))
QUICK = SolverSettings(num_steps=3, guidance=2.0)
HEIGHT_PX, WIDTH_PX = 16, 24
DROPPED = "are dropped: the compressor needs whole groups"


class HashTower:
    """Two tokens per text, numbers from its letters."""

    width, pooled_width = 6, 4

    def encode(self, texts):
        seeds = [sum(map(ord, text)) for text in texts]
        tokens = torch.cat([torch.randn(2, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return tokens, torch.tensor([2] * len(texts)), torch.tensor([[float(seed % 7)] * 4 for seed in seeds])


class LinearInTime(nn.Module):
    """Velocity towards linear interpolation in time, pixel by pixel, through the conditioning frames of each sample."""

    def __init__(self, patch=(1, 1, 1)) -> None:
        super().__init__()
        self.tokenizer = LatentTokenizer(load("patch:24"), patch, torch.device("cpu"))
        self.config, self.layout_keys = {"token_width": 24 * patch[0]}, ()
        self.weight = nn.Parameter(torch.zeros(1))
        self.lengths_seen: list[int] = []
        """Token frames of each sample of each call."""

    def forward(self, inputs):
        velocity = []
        mask_L = inputs.condition_mask_L
        mask_L = torch.zeros(len(inputs.tokens_LD), dtype=torch.bool) if mask_L is None else mask_L
        parts = [part.split(list(inputs.segments.lengths)) for part in (inputs.tokens_LD, inputs.position_L3, mask_L)]
        for x, position, mask, t in zip(*parts, inputs.timestep_S):
            shape = tuple((position.amax(0) + 1).tolist())
            self.lengths_seen.append(shape[0])
            velocity.append((x - self.clean(x, shape, mask.reshape(shape[0], -1).all(1))) / t)
        return torch.cat(velocity)

    def clean(self, x, shape, condition_mask_K):
        if not condition_mask_K.any():
            return torch.zeros_like(x)
        frames = self.tokenizer.decode(x, shape).astype(float)
        unit = 4 * self.tokenizer.grid.patch[0]
        known = np.flatnonzero(condition_mask_K.numpy().repeat(unit)[3:])
        every, line = np.arange(len(frames)), frames.copy()
        for pixel in np.ndindex(frames.shape[1:]):
            line[:, *pixel] = np.interp(every, known, frames[known, *pixel])
        # Outside of the conditioning frames: linear extrapolation from the nearest ones.
        for outside, anchor, other in (
            (every > known[-1], known[-1], known[-4:][0]),
            (every < known[0], known[0], known[:4][-1]),
        ):
            slope = (frames[anchor] - frames[other]) / max(1, abs(anchor - other))
            line[outside] = frames[anchor] + slope * abs(every[outside] - anchor)[:, None, None, None]
        return self.tokenizer.encode(line.clip(0, 255).round().astype(np.uint8))


def make_sampler(model=None, conditions=DEFAULT_CONDITIONS, num_frames=17, patch=(1, 1, 1), diffusion=None):
    torch.manual_seed(0)
    compressor = load("patch:24")
    width = 24 * patch[0] * patch[1] * patch[2]
    if model is None:
        model = build("dit", token_width=width, text_width=6, pooled_width=4, width=24, depth=1, num_heads=2)
        for parameter in model.parameters():
            if not parameter.detach().any():
                nn.init.normal_(parameter, std=0.2)
    return Sampler(
        model,
        encoder=TextEncoder(HashTower(), spec="hash", weights_hash="0"),
        compressor=compressor,
        patch=patch,
        diffusion=diffusion or DiffusionSettings(),
        buckets=(Bucket(num_frames, HEIGHT_PX, WIDTH_PX, 8), Bucket(1, 16, 16, 8)),
        conditions=conditions,
    )


@pytest.fixture
def oracle():
    return make_sampler(LinearInTime())


def ramp(num_frames, start=20.0, step=4.0):
    """Frames that brighten steadily, brighter to the right: the compressor reconstructs them well."""
    across = np.linspace(0, 30, WIDTH_PX)[:, None] + np.zeros((HEIGHT_PX, WIDTH_PX, 3))
    return (
        np.stack([across + start + step * frame for frame in range(num_frames)]).clip(0, 255).round().astype(np.uint8)
    )


def sample(sampler, conditioning_frames, text="it goes on", settings=QUICK, **more):
    return sampler.sample_requests([Request(text=text, conditioning=conditioning_frames)], settings, **more)[0]


def difference(one, other):
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def seam_ratio(video_THWC, seam, sampled):
    """Difference of frame `seam` from the one before it, relative to the mean difference of consecutive sampled frames."""
    steps = [difference(video_THWC[t], video_THWC[t - 1]) for t in sampled]
    return difference(video_THWC[seam], video_THWC[(seam - 1) % len(video_THWC)]) / max(np.mean(steps), 1e-6)


def test_image_to_video_reproduces_the_image_as_first_frame():
    sampler = make_sampler()
    image = ramp(1)[0]
    sampled = sample(sampler, conditioning.image_to_video(image, 17, GRID))
    reconstructed = sampler.tokenizer.decode(sampler.tokenizer.encode(image[None]), (1, 2, 3))[0]
    assert difference(sampled.video_THWC[0], reconstructed) <= 0.5
    assert difference(reconstructed, image) < 3
    assert sampled.condition_mask_T.tolist() == [True] + [False] * 16
    other = sample(sampler, conditioning.image_to_video(255 - image, 17, GRID))
    assert difference(sampled.video_THWC[5], other.video_THWC[5]) > 1, "the rest depends on the image"


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "ddim", "ancestral"])
def test_conditioning_tokens_reach_the_model_clean_with_every_solver(solver):
    seen, image = [], ramp(1)[0]
    diffusion = DiffusionSettings(schedule="cosine", prediction="v", discrete=True)
    sampler = make_sampler(diffusion=diffusion if solver in ("ddim", "ancestral") else None)
    clean = sampler.tokenizer.encode(image[None])
    sampler.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].tokens_LD[args[0].condition_mask_L])
    )
    sampled = sample(
        sampler, conditioning.image_to_video(image, 17, GRID), settings=SolverSettings(num_steps=2, solver=solver)
    )
    assert len(seen) == (4 if solver == "heun" else 2)
    for tokens in seen:
        torch.testing.assert_close(tokens, clean.repeat(2, 1))
    assert difference(sampled.video_THWC[0], sampler.tokenizer.decode(clean, (1, 2, 3))[0]) <= 0.5
    edited = sample(
        sampler, conditioning.video_to_video(ramp(17), 0.02, GRID), settings=SolverSettings(num_steps=2, solver=solver)
    )
    assert difference(edited.video_THWC, ramp(17)) < 8


def test_extending_forward_and_backward_has_no_seam(oracle):
    video = ramp(9, start=60)
    later = sample(oracle, conditioning.extend(video, 8, GRID))
    assert later.video_THWC.shape[0] == 17
    assert later.condition_mask_T.tolist() == [True] * 9 + [False] * 8
    assert difference(later.video_THWC[:9], video) < 2.5
    assert seam_ratio(later.video_THWC, 9, range(10, 17)) <= 1.5
    earlier = sample(oracle, conditioning.extend_backward(video[:8], 8, GRID))
    assert earlier.condition_mask_T.tolist() == [False] * 8 + [True] * 8
    assert difference(earlier.video_THWC[8:], video[:8]) < 2.5
    assert seam_ratio(earlier.video_THWC, 8, range(1, 8)) <= 1.5
    assert earlier.video_THWC[0].mean() < earlier.video_THWC[7].mean() < video[0].mean(), "it brightens up to the video"


def test_connecting_two_videos_has_no_seams(oracle):
    first, second = ramp(5, start=20), ramp(4, start=20 + 4 * 13)
    sampled = sample(oracle, conditioning.connect([first, second], 8, GRID))
    assert sampled.condition_mask_T.tolist() == [True] * 5 + [False] * 8 + [True] * 4
    assert difference(sampled.video_THWC[:5], first) < 2.5
    assert difference(sampled.video_THWC[13:], second) < 2.5
    assert seam_ratio(sampled.video_THWC, 5, range(6, 13)) <= 1.5
    assert seam_ratio(sampled.video_THWC, 13, range(6, 13)) <= 1.5


def test_a_loop_ends_where_it_starts(oracle):
    video = ramp(9, start=60, step=3)
    sampled = sample(oracle, conditioning.loop(video, 8, 4, GRID))
    assert sampled.video_THWC.shape[0] == 17
    assert difference(sampled.video_THWC[:9], video) < 2.5
    assert seam_ratio(sampled.video_THWC, 9, range(10, 17)) <= 1.5
    assert seam_ratio(sampled.video_THWC, 0, range(10, 17)) <= 1.5, "from the last frame to the first"


def test_text_to_video_can_be_closed_to_a_loop(oracle):
    request = Request(text="red", conditioning=conditioning.text_to_video(17, HEIGHT_PX, WIDTH_PX), loop_frames=8)
    plain = sample(oracle, request.conditioning, "red")
    (sampled,) = oracle.sample_requests([request], QUICK)
    assert sampled.video_THWC.shape[0] == 25
    assert np.array_equal(sampled.video_THWC[:17], plain.video_THWC), "not compressed a second time"
    assert not sampled.condition_mask_T.any()
    assert seam_ratio(sampled.video_THWC, 0, range(18, 25)) <= 1.5


def test_keyframe_interpolation_reproduces_the_images_at_their_times(oracle):
    low, high = ramp(1, start=40)[0], ramp(1, start=160)[0]
    sampled = sample(oracle, conditioning.keyframe_interpolation([low, high, low], [0, 8, 16], 17, GRID))
    for frame, image in ((0, low), (7, high), (16, low)):
        assert difference(sampled.video_THWC[frame], image) < 3
    assert sampled.condition_mask_T.nonzero()[0].tolist() == [0, 5, 6, 7, 8, 13, 14, 15, 16]
    assert low.mean() + 20 < sampled.video_THWC[2].mean() < high.mean() - 20


def test_an_edit_of_lower_strength_is_closer_to_the_video():
    sampler = make_sampler(conditions=())
    video = ramp(17, start=100)
    reconstructed = sampler.tokenizer.decode(sampler.tokenizer.encode(video), (5, 2, 3))
    distances = [
        difference(sample(sampler, conditioning.video_to_video(video, strength, GRID)).video_THWC, reconstructed)
        for strength in (0.02, 0.4, 1.0)
    ]
    assert distances[0] < 3
    assert distances[0] < distances[1] < distances[2]
    text_only = sample(sampler, conditioning.text_to_video(17, HEIGHT_PX, WIDTH_PX)).video_THWC
    assert np.array_equal(sample(sampler, conditioning.video_to_video(video, 1.0, GRID)).video_THWC, text_only)


def test_videos_longer_than_trained_are_sampled_in_windows_that_continue_each_other(oracle):
    sampled = sample(oracle, conditioning.extend(ramp(9, start=20, step=2), 48, GRID))
    assert sampled.video_THWC.shape[0] == 57
    assert set(oracle.model.lengths_seen) == {5}, "never more than the 17 frames of the training"
    steps = [difference(sampled.video_THWC[t], sampled.video_THWC[t - 1]) for t in range(9, 57)]
    assert max(steps) <= 3 * np.mean(steps)
    assert sampled.video_THWC[-1].mean() > sampled.video_THWC[8].mean() + 60, "it brightens to the end"
    oracle.model.lengths_seen.clear()
    back = sample(oracle, conditioning.extend_backward(ramp(8, start=150, step=2), 48, GRID))
    assert back.video_THWC.shape[0] == 56
    assert set(oracle.model.lengths_seen) == {5}
    assert back.video_THWC[0].mean() < back.video_THWC[48].mean() - 60
    steps = [difference(back.video_THWC[t], back.video_THWC[t - 1]) for t in range(1, 49)]
    assert max(steps) <= 3 * np.mean(steps)


def test_a_long_video_to_extend_is_reproduced_although_windows_contain_its_end_only(oracle):
    video = ramp(61, start=10, step=3)
    sampled = sample(oracle, conditioning.extend(video, 8, GRID))
    assert sampled.video_THWC.shape[0] == 69
    assert difference(sampled.video_THWC[:61], video) < 2.5


def test_without_frame_conditioning_long_videos_are_averaged_windows_in_bounded_packs(monkeypatch):
    sampler = make_sampler(conditions=())
    lengths = []
    sampler.model.register_forward_pre_hook(
        lambda module, args: lengths.append((len(args[0].tokens_LD), max(args[0].segments.lengths)))
    )
    requested = conditioning.text_to_video(65, HEIGHT_PX, WIDTH_PX)
    whole = sample(sampler, requested).video_THWC
    assert whole.shape[0] == 65
    assert {longest for _, longest in lengths} == {5 * 6}
    lengths.clear()
    monkeypatch.setattr("train.sampling.solver_settings.MAX_PACK_TOKENS", 2 * 60)
    bounded = sample(sampler, requested).video_THWC
    assert max(tokens for tokens, _ in lengths) <= 120
    assert np.abs(whole.astype(int) - bounded.astype(int)).max() <= 1
    edit = sample(sampler, conditioning.video_to_video(ramp(65, step=2), 0.05, GRID)).video_THWC
    assert difference(edit, ramp(65, step=2)) < 6


def test_a_request_gives_the_same_video_alone_and_among_others():
    sampler = make_sampler()
    video, image = ramp(9), ramp(1, start=90)[0]
    requests = [
        Request(text="red", conditioning=conditioning.text_to_video(33, HEIGHT_PX, WIDTH_PX)),
        Request(text="red", conditioning=conditioning.image_to_video(image, 17, GRID), seed=1),
        Request(text="", conditioning=conditioning.extend(video, 12, GRID)),
        Request(text="blue", conditioning=conditioning.video_to_video(video, 0.5, GRID)),
        Request(text="blue", conditioning=conditioning.text_to_video(9, 16, 16), loop_frames=8),
        Request(text="blue", conditioning=conditioning.text_to_video(9, 16, 16), loop_frames=8),
    ]
    together = sampler.sample_requests(requests, QUICK)
    for request, sampled in list(zip(requests, together))[:5]:
        alone = sampler.sample_requests([request], QUICK)[0].video_THWC
        assert np.abs(alone.astype(int) - sampled.video_THWC.astype(int)).max() <= 1
    assert difference(together[4].video_THWC, together[5].video_THWC) > 1, "a repeated request gives another video"


@pytest.mark.parametrize("mode", ["image", "extend", "extend-back", "connect", "inbetween", "loop"])
def test_a_model_without_frame_conditioning_names_the_setting_that_trains_it(mode):
    sampler, video, image = make_sampler(conditions=()), ramp(9), ramp(1)[0]
    requested = {
        "image": lambda: conditioning.image_to_video(image, 17, GRID),
        "extend": lambda: conditioning.extend(video, 8, GRID),
        "extend-back": lambda: conditioning.extend_backward(video, 8, GRID),
        "connect": lambda: conditioning.connect([video, video], 8, GRID),
        "inbetween": lambda: conditioning.keyframe_interpolation([image, image], [0, 16], 17, GRID),
        "loop": lambda: conditioning.loop(video, 8, 4, GRID),
    }[mode]()
    with pytest.raises(UsageError, match=rf"not trained for {mode} prompts.*dit.conditions"):
        sample(sampler, requested)


def test_frames_that_do_not_fill_groups_are_dropped_and_noted():
    assert conditioning.extend(ramp(12), 4, GRID).notes == (f"the first 3 of 12 frames {DROPPED}",)
    assert conditioning.extend_backward(ramp(11), 4, GRID).notes == (f"the last 3 of 11 frames {DROPPED}",)
    assert conditioning.video_to_video(ramp(9), 0.5, GRID).notes == ()
    with pytest.raises(UsageError, match="new_frames = 6 must be 4 or 8"):
        conditioning.extend(ramp(5), 6, GRID)
    with pytest.raises(UsageError, match="too short"):
        conditioning.extend_backward(ramp(3), 4, GRID)
    with pytest.raises(UsageError, match="two images fall into frames 5 to 8"):
        conditioning.keyframe_interpolation([ramp(1)[0]] * 2, [6, 8], 17, GRID)
    with pytest.raises(UsageError, match="strength"):
        conditioning.video_to_video(ramp(9), 0.0, GRID)
    with pytest.raises(UsageError, match="one size"):
        conditioning.connect([ramp(5), ramp(5)[:, :8]], 4, GRID)


def test_tokens_of_several_latent_frames_take_whole_tokens_only():
    sampler = make_sampler(LinearInTime((2, 1, 1)), patch=(2, 1, 1), num_frames=21)
    grid = sampler.grid
    with pytest.raises(UsageError, match="single image fills none"):
        conditioning.image_to_video(ramp(1)[0], 21, grid)
    requested = conditioning.extend(ramp(14), 16, grid)
    assert requested.condition_mask_T.tolist() == [True] * 13 + [False] * 16
    sampled = sample(sampler, requested)
    assert sampled.video_THWC.shape[0] == 29
    assert difference(sampled.video_THWC[:13], ramp(14)[1:]) < 2.5
