"""Images, videos and the frames between them as prompts: what is given stays, what is made goes on from it.

Two models stand in for a trained one: a random transformer, and an oracle that draws a straight line in time through the
tokens that it is given. With the oracle a frame that is given in the wrong place shows at once.
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
from train.diffusion.frame_conditioning import DEFAULT_MIX
from train.diffusion.process import PathSettings
from train.sampling import conditioning_frames as timeline
from train.sampling.request import Request, TokenCodec
from train.sampling.sampler import Sampler, SolverSettings
from train.sampling.windows import Window, overlapping, plan_windows
from train.text.encoder import TextEncoder

GRID = Grid(frame_stride=4, spatial_stride=8, patch=(1, 1, 1))
QUICK = SolverSettings(num_steps=3, guidance=2.0)
HEIGHT_PX, WIDTH_PX = 16, 24


class HashTower:
    """Two tokens per text, numbers from its letters."""

    width, pooled_width = 6, 4

    def encode(self, texts):
        seeds = [sum(map(ord, text)) for text in texts]
        tokens = torch.cat([torch.randn(2, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return tokens, torch.tensor([2] * len(texts)), torch.tensor([[float(seed % 7)] * 4 for seed in seeds])


class Line(nn.Module):
    """Velocity towards a straight line in time, pixel by pixel, through the given frames of each sample."""

    def __init__(self, patch=(1, 1, 1)) -> None:
        super().__init__()
        self.codec = TokenCodec(load("patch:24"), patch, torch.device("cpu"))
        self.config = {"token_width": 24 * patch[0]}
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []
        """Token frames of each sample of each call."""

    def forward(self, x_LD, position_L3, segments, timestep_S, *_, given_L=None, **__):
        velocity = []
        given = torch.zeros(len(x_LD), dtype=torch.bool) if given_L is None else given_L
        rows = [part.split(list(segments.lengths)) for part in (x_LD, position_L3, given)]
        for x, place, is_given, t in zip(*rows, timestep_S):
            shape = tuple((place.amax(0) + 1).tolist())
            self.seen.append(shape[0])
            velocity.append((x - self.clean(x, shape, is_given.reshape(shape[0], -1).all(1))) / t)
        return torch.cat(velocity)

    def clean(self, x, shape, given_K):
        if not given_K.any():
            return torch.zeros_like(x)
        frames = self.codec.decode(x, shape).astype(float)
        unit = 4 * self.codec.grid.patch[0]
        known = np.flatnonzero(given_K.numpy().repeat(unit)[3:])
        every, line = np.arange(len(frames)), frames.copy()
        for place in np.ndindex(frames.shape[1:]):
            line[:, *place] = np.interp(every, known, frames[known, *place])
        # Outside of the given frames it goes on as the nearest ones do.
        for outside, anchor, other in (
            (every > known[-1], known[-1], known[-4:][0]),
            (every < known[0], known[0], known[:4][-1]),
        ):
            slope = (frames[anchor] - frames[other]) / max(1, abs(anchor - other))
            line[outside] = frames[anchor] + slope * abs(every[outside] - anchor)[:, None, None, None]
        return self.codec.encode(line.clip(0, 255).round().astype(np.uint8))


def make_sampler(model=None, conditions=DEFAULT_MIX, longest_frames=17, patch=(1, 1, 1), path=None):
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
        path=path or PathSettings(),
        buckets=(Bucket(longest_frames, HEIGHT_PX, WIDTH_PX, 8), Bucket(1, 16, 16, 8)),
        conditions=conditions,
    )


@pytest.fixture
def oracle():
    return make_sampler(Line())


def ramp(num_frames, start=20.0, step=4.0):
    """Frames that brighten steadily, brighter to the right: the compressor keeps them well."""
    across = np.linspace(0, 30, WIDTH_PX)[:, None] + np.zeros((HEIGHT_PX, WIDTH_PX, 3))
    return (
        np.stack([across + start + step * frame for frame in range(num_frames)]).clip(0, 255).round().astype(np.uint8)
    )


def make(sampler, made_from, text="it goes on", settings=QUICK, **more):
    return sampler.make([Request(text=text, timeline=made_from)], settings, **more)[0]


def difference(one, other):
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def seam_ratio(video_THWC, seam, generated):
    """Step at `seam` (from the frame before it) against the usual step between neighbouring generated frames."""
    steps = [difference(video_THWC[t], video_THWC[t - 1]) for t in generated]
    return difference(video_THWC[seam], video_THWC[(seam - 1) % len(video_THWC)]) / max(np.mean(steps), 1e-6)


def test_an_image_is_the_first_frame_to_compressor_accuracy():
    sampler = make_sampler()
    image = ramp(1)[0]
    made = make(sampler, timeline.animated(image, 17, GRID))
    kept = sampler.codec.decode(sampler.codec.encode(image[None]), (1, 2, 3))[0]
    assert difference(made.video_THWC[0], kept) <= 0.5
    assert difference(kept, image) < 3
    assert made.given_T.tolist() == [True] + [False] * 16
    other = make(sampler, timeline.animated(255 - image, 17, GRID))
    assert difference(made.video_THWC[5], other.video_THWC[5]) > 1, "the rest depends on the image"


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "ddim", "ancestral"])
def test_given_tokens_reach_the_model_clean_whatever_the_solver(solver):
    seen, image = [], ramp(1)[0]
    diffusion = PathSettings(schedule="cosine", prediction="v", discrete=True)
    sampler = make_sampler(path=diffusion if solver in ("ddim", "ancestral") else None)
    clean = sampler.codec.encode(image[None])
    sampler.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0][kwargs["given_L"]]), with_kwargs=True
    )
    made = make(sampler, timeline.animated(image, 17, GRID), settings=SolverSettings(num_steps=2, solver=solver))
    assert len(seen) == (4 if solver == "heun" else 2)
    for given in seen:
        torch.testing.assert_close(given, clean.repeat(2, 1))
    assert difference(made.video_THWC[0], sampler.codec.decode(clean, (1, 2, 3))[0]) <= 0.5
    edited = make(sampler, timeline.edited(ramp(17), 0.02, GRID), settings=SolverSettings(num_steps=2, solver=solver))
    assert difference(edited.video_THWC, ramp(17)) < 8


def test_a_video_goes_on_and_is_led_up_to_without_a_step(oracle):
    video = ramp(9, start=60)
    later = make(oracle, timeline.extended(video, 8, GRID))
    assert later.video_THWC.shape[0] == 17
    assert later.given_T.tolist() == [True] * 9 + [False] * 8
    assert difference(later.video_THWC[:9], video) < 2.5
    assert seam_ratio(later.video_THWC, 9, range(10, 17)) <= 1.5
    earlier = make(oracle, timeline.led_up_to(video[:8], 8, GRID))
    assert earlier.given_T.tolist() == [False] * 8 + [True] * 8
    assert difference(earlier.video_THWC[8:], video[:8]) < 2.5
    assert seam_ratio(earlier.video_THWC, 8, range(1, 8)) <= 1.5
    assert earlier.video_THWC[0].mean() < earlier.video_THWC[7].mean() < video[0].mean(), "it led up to the video"


def test_two_videos_are_connected_without_a_step_on_either_side(oracle):
    one, other = ramp(5, start=20), ramp(4, start=20 + 4 * 13)
    made = make(oracle, timeline.connected([one, other], 8, GRID))
    assert made.given_T.tolist() == [True] * 5 + [False] * 8 + [True] * 4
    assert difference(made.video_THWC[:5], one) < 2.5
    assert difference(made.video_THWC[13:], other) < 2.5
    assert seam_ratio(made.video_THWC, 5, range(6, 13)) <= 1.5
    assert seam_ratio(made.video_THWC, 13, range(6, 13)) <= 1.5


def test_a_loop_ends_where_it_starts(oracle):
    video = ramp(9, start=60, step=3)
    made = make(oracle, timeline.looped(video, 8, 4, GRID))
    assert made.video_THWC.shape[0] == 17
    assert difference(made.video_THWC[:9], video) < 2.5
    assert seam_ratio(made.video_THWC, 9, range(10, 17)) <= 1.5
    assert seam_ratio(made.video_THWC, 0, range(10, 17)) <= 1.5, "from the last frame to the first"


def test_a_text_becomes_a_loop_by_leading_its_video_back(oracle):
    request = Request(text="red", timeline=timeline.blank(17, HEIGHT_PX, WIDTH_PX), closing_frames=8)
    plain = make(oracle, request.timeline, "red")
    (made,) = oracle.make([request], QUICK)
    assert made.video_THWC.shape[0] == 25
    assert np.array_equal(made.video_THWC[:17], plain.video_THWC), "made once, not compressed twice"
    assert not made.given_T.any()
    assert seam_ratio(made.video_THWC, 0, range(18, 25)) <= 1.5


def test_pictures_stand_at_their_times_and_the_rest_lies_between(oracle):
    low, high = ramp(1, start=40)[0], ramp(1, start=160)[0]
    made = make(oracle, timeline.between([low, high, low], [0, 8, 16], 17, GRID))
    for frame, image in ((0, low), (7, high), (16, low)):
        assert difference(made.video_THWC[frame], image) < 3
    assert made.given_T.nonzero()[0].tolist() == [0, 5, 6, 7, 8, 13, 14, 15, 16]
    assert low.mean() + 20 < made.video_THWC[2].mean() < high.mean() - 20


def test_an_edit_keeps_more_of_the_video_the_weaker_it_is():
    sampler = make_sampler(conditions=())
    video = ramp(17, start=100)
    kept = sampler.codec.decode(sampler.codec.encode(video), (5, 2, 3))
    far = [
        difference(make(sampler, timeline.edited(video, strength, GRID)).video_THWC, kept)
        for strength in (0.02, 0.4, 1.0)
    ]
    assert far[0] < 3
    assert far[0] < far[1] < far[2]
    text_alone = make(sampler, timeline.blank(17, HEIGHT_PX, WIDTH_PX)).video_THWC
    assert np.array_equal(make(sampler, timeline.edited(video, 1.0, GRID)).video_THWC, text_alone)


def test_videos_longer_than_trained_are_made_in_windows_that_go_on_from_each_other(oracle):
    made = make(oracle, timeline.extended(ramp(9, start=20, step=2), 48, GRID))
    assert made.video_THWC.shape[0] == 57
    assert set(oracle.model.seen) == {5}, "never more than the 17 frames of the training"
    steps = [difference(made.video_THWC[t], made.video_THWC[t - 1]) for t in range(9, 57)]
    assert max(steps) <= 3 * np.mean(steps)
    assert made.video_THWC[-1].mean() > made.video_THWC[8].mean() + 60, "it went on brightening all the way"
    oracle.model.seen.clear()
    back = make(oracle, timeline.led_up_to(ramp(8, start=150, step=2), 48, GRID))
    assert back.video_THWC.shape[0] == 56
    assert set(oracle.model.seen) == {5}
    assert back.video_THWC[0].mean() < back.video_THWC[48].mean() - 60
    steps = [difference(back.video_THWC[t], back.video_THWC[t - 1]) for t in range(1, 49)]
    assert max(steps) <= 3 * np.mean(steps)


def test_a_long_given_video_stays_whole_although_windows_see_its_end_only(oracle):
    video = ramp(61, start=10, step=3)
    made = make(oracle, timeline.extended(video, 8, GRID))
    assert made.video_THWC.shape[0] == 69
    assert difference(made.video_THWC[:61], video) < 2.5


def test_without_conditions_long_videos_are_averaged_from_windows_in_bounded_rows(monkeypatch):
    sampler = make_sampler(conditions=())
    lengths = []
    sampler.model.register_forward_pre_hook(lambda module, args: lengths.append((len(args[0]), max(args[2].lengths))))
    asked = timeline.blank(65, HEIGHT_PX, WIDTH_PX)
    whole = make(sampler, asked).video_THWC
    assert whole.shape[0] == 65
    assert {longest for _, longest in lengths} == {5 * 6}
    lengths.clear()
    monkeypatch.setattr("train.sampling.sampler.MAX_ROW_TOKENS", 2 * 60)
    bounded = make(sampler, asked).video_THWC
    assert max(tokens for tokens, _ in lengths) <= 120
    assert np.abs(whole.astype(int) - bounded.astype(int)).max() <= 1
    edit = make(sampler, timeline.edited(ramp(65, step=2), 0.05, GRID)).video_THWC
    assert difference(edit, ramp(65, step=2)) < 6


def test_a_request_gives_the_same_video_alone_and_among_other_kinds():
    sampler = make_sampler()
    video, image = ramp(9), ramp(1, start=90)[0]
    requests = [
        Request(text="red", timeline=timeline.blank(33, HEIGHT_PX, WIDTH_PX)),
        Request(text="red", timeline=timeline.animated(image, 17, GRID), seed=1),
        Request(text="", timeline=timeline.extended(video, 12, GRID)),
        Request(text="blue", timeline=timeline.edited(video, 0.5, GRID)),
        Request(text="blue", timeline=timeline.blank(9, 16, 16), closing_frames=8),
        Request(text="blue", timeline=timeline.blank(9, 16, 16), closing_frames=8),
    ]
    together = sampler.make(requests, QUICK)
    for request, made in list(zip(requests, together))[:5]:
        alone = sampler.make([request], QUICK)[0].video_THWC
        assert np.abs(alone.astype(int) - made.video_THWC.astype(int)).max() <= 1
    assert difference(together[4].video_THWC, together[5].video_THWC) > 1, "the same twice gives two videos"


@pytest.mark.parametrize("mode", ["image", "extend", "extend-back", "connect", "inbetween", "loop"])
def test_a_model_without_conditions_says_what_trains_them(mode):
    sampler, video, image = make_sampler(conditions=()), ramp(9), ramp(1)[0]
    asked = {
        "image": lambda: timeline.animated(image, 17, GRID),
        "extend": lambda: timeline.extended(video, 8, GRID),
        "extend-back": lambda: timeline.led_up_to(video, 8, GRID),
        "connect": lambda: timeline.connected([video, video], 8, GRID),
        "inbetween": lambda: timeline.between([image, image], [0, 16], 17, GRID),
        "loop": lambda: timeline.looped(video, 8, 4, GRID),
    }[mode]()
    with pytest.raises(UsageError, match=rf"not trained for {mode} prompts.*dit.conditions"):
        make(sampler, asked)


def test_frames_that_do_not_fill_groups_are_left_out_and_said():
    assert timeline.extended(ramp(12), 4, GRID).notes == ("the first 3 of 12 frames left out: groups have to be whole",)
    assert timeline.led_up_to(ramp(11), 4, GRID).notes == ("the last 3 of 11 frames left out: groups have to be whole",)
    assert timeline.edited(ramp(9), 0.5, GRID).notes == ()
    with pytest.raises(UsageError, match="new_frames = 6 must be 4 or 8"):
        timeline.extended(ramp(5), 6, GRID)
    with pytest.raises(UsageError, match="too short"):
        timeline.led_up_to(ramp(3), 4, GRID)
    with pytest.raises(UsageError, match="two images fall into frames 5 to 8"):
        timeline.between([ramp(1)[0]] * 2, [6, 8], 17, GRID)
    with pytest.raises(UsageError, match="strength"):
        timeline.edited(ramp(9), 0.0, GRID)
    with pytest.raises(UsageError, match="one size"):
        timeline.connected([ramp(5), ramp(5)[:, :8]], 4, GRID)


def test_tokens_of_several_latent_frames_take_whole_tokens_only():
    sampler = make_sampler(Line((2, 1, 1)), patch=(2, 1, 1), longest_frames=21)
    grid = sampler.grid
    with pytest.raises(UsageError, match="one image fills none"):
        timeline.animated(ramp(1)[0], 21, grid)
    asked = timeline.extended(ramp(14), 16, grid)
    assert asked.given_T.tolist() == [True] * 13 + [False] * 16
    made = make(sampler, asked)
    assert made.video_THWC.shape[0] == 29
    assert difference(made.video_THWC[:13], ramp(14)[1:]) < 2.5


def test_windows_leave_nothing_open_and_see_what_they_lead_to():
    given = np.zeros(12, bool)
    assert plan_windows(given, 5, 2) == [Window(0, 5), Window(3, 5), Window(6, 5), Window(7, 5)]
    given[:3] = True
    assert plan_windows(given, 5, 2)[0] == Window(1, 5)
    given[6:] = True
    assert plan_windows(given, 5, 2) == [Window(2, 5)], "one window around the gap"
    behind = np.zeros(9, bool)
    behind[-2:] = True
    assert plan_windows(behind, 5, 2) == [Window(4, 5), Window(2, 5), Window(0, 5)]
    assert overlapping(12, 5, 2) == [Window(0, 5), Window(2, 5), Window(5, 5), Window(7, 5)]
