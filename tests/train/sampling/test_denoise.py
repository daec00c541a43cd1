"""Denoising a pack of inputs with models whose result is known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import train.sampling.denoise as module
from tests.stand_ins.pretend_cuda import pretend_cuda
from train.backbones.registry import build
from train.diffusion.guidance import Guidance
from train.diffusion.process import DiffusionSettings
from train.diffusion.rng import seeded_generator
from train.diffusion.solvers import integrate, sampling_timesteps
from train.layers import attention
from train.layers.segments import Segments
from train.sampling.denoise import DenoiseInput, denoise
from train.sampling.windows import Window, overlapping_windows
from train.text.encoder import TextEncoder

WIDTH = 2


class LengthEncoder:
    """Pooled embedding of a text: its length."""

    width = pooled_width = 1

    def encode(self, texts):
        lengths = torch.tensor([[float(len(text))] for text in texts])
        return lengths, torch.ones(len(texts), dtype=torch.int64), lengths


class TowardsConstant(nn.Module):
    """x0 prediction: the length of the text, or -1 with the null caption; plus `per_frame` times the frame position."""

    def __init__(self, per_frame: float = 0.0) -> None:
        super().__init__()
        self.config, self.layout_keys = {"token_width": WIDTH}, ()
        self.per_frame = per_frame
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls: list[dict] = []

    def forward(self, inputs):
        segments = inputs.segments
        self.calls.append(
            {
                "x": inputs.tokens_LD,
                "lengths": segments.lengths,
                "t": inputs.timestep_S,
                "mask": inputs.condition_mask_L,
            }
        )
        value_S = torch.where(torch.tensor(inputs.drop_text_S), -1.0, inputs.text.pooled_SC[:, 0])
        value_L = value_S[segments.segment_ids_L] + self.per_frame * inputs.position_L3[:, 0]
        return value_L[:, None].expand(-1, WIDTH)


def run(model, inputs, *, guidance=1.0, num_steps=4, solver="euler", max_pack_tokens=10_000, **settings):
    return denoise(
        model,
        inputs,
        encoder=TextEncoder(LengthEncoder(), spec="lengths", weights_hash="0"),
        diffusion=DiffusionSettings(**({"prediction": "x0"} | settings)),
        num_steps=num_steps,
        guidance=Guidance.of(guidance),
        solver=solver,
        max_pack_tokens=max_pack_tokens,
    )


def video(text="abc", frames=3, **changes):
    return DenoiseInput(**({"text": text, "noise_key": ("sample", 0, 0), "token_shape": (frames, 1, 2)} | changes))


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_every_input_ends_at_its_own_prediction(solver):
    short, long = run(TowardsConstant(), [video("ab", 1), video("abcde", 3)], solver=solver)
    torch.testing.assert_close(short, torch.full((2, WIDTH), 2.0))
    torch.testing.assert_close(long, torch.full((6, WIDTH), 5.0))


def test_guidance_extrapolates_from_the_null_caption():
    (guided,) = run(TowardsConstant(), [video("abc")], guidance=2.0)
    torch.testing.assert_close(guided, torch.full((6, WIDTH), -1.0 + 2 * (3 - -1)))


def test_a_guidance_scale_of_1_needs_one_copy_of_the_pack_and_an_interval_only_inside():
    model = TowardsConstant()
    run(model, [video("abc")])
    assert [call["lengths"] for call in model.calls] == [(6,)] * 4
    model.calls.clear()
    run(model, [video("abc")], guidance=Guidance(scale=2.0, interval=(0.4, 0.8)))  # times 1, 0.75, 0.5, 0.25
    assert [call["lengths"] for call in model.calls] == [(6,), (6, 6), (6, 6), (6,)]


def test_the_initial_noise_is_that_of_the_key_whatever_else_is_in_the_pack():
    model = TowardsConstant()
    run(model, [video("ab", 1, noise_key=("sample", 1, 0)), video("abc", noise_key=("sample", 0, 0))])
    expected = torch.randn(6, WIDTH, generator=seeded_generator("sample", 0, 0))
    assert torch.equal(model.calls[0]["x"][2:], expected)


def test_conditioning_tokens_are_clean_in_every_call_and_in_the_result():
    model, clean_LD = TowardsConstant(), torch.arange(12.0).reshape(6, WIDTH)
    (found,) = run(model, [video(clean_LD=clean_LD, condition_mask_K=(True, False, False))])
    assert torch.equal(found[:2], clean_LD[:2])
    torch.testing.assert_close(found[2:], torch.full((4, WIDTH), 3.0))
    for call in model.calls:
        assert call["mask"].tolist() == [True, True, False, False, False, False]
        assert torch.equal(call["x"][:2], clean_LD[:2])


def test_strength_starts_from_the_clean_tokens_noised_to_that_time():
    model, clean_LD = TowardsConstant(), torch.full((6, WIDTH), 8.0)
    run(model, [video(clean_LD=clean_LD, strength=0.25)])
    noise_LD = torch.randn(6, WIDTH, generator=seeded_generator("sample", 0, 0))
    torch.testing.assert_close(model.calls[0]["x"], 0.75 * 8 + 0.25 * noise_LD)
    assert [round(float(call["t"][0]), 4) for call in model.calls] == [0.25, 0.1875, 0.125, 0.0625]


def test_times_of_a_discrete_schedule_stay_on_its_steps_below_full_strength():
    model, clean_LD = TowardsConstant(), torch.zeros(6, WIDTH)
    run(model, [video(clean_LD=clean_LD, strength=0.333)], solver="ddim", schedule="linear", discrete=True)
    steps = torch.stack([call["t"][0] for call in model.calls]) * 1000
    torch.testing.assert_close(steps, steps.round())


def test_overlapping_windows_are_averaged_by_their_blend_weights():
    windows = tuple(overlapping_windows(5, 3, 1))
    assert windows == (Window(0, 3), Window(2, 3))
    (found,) = run(TowardsConstant(per_frame=1.0), [video("abc", 5, windows=windows)])
    # positions start at 0 in each window: 0 1 2 and 0 1 2; frame 2 is the start of the later window, with weight 0
    expected = torch.tensor([3.0, 4, 5, 4, 5]).repeat_interleave(2)[:, None].expand(-1, WIDTH)
    torch.testing.assert_close(found, expected)
    windows = tuple(overlapping_windows(6, 4, 2))  # frames 0 to 3 and 2 to 5, weights 1 2 2 1 and 0 2 2 1
    (found,) = run(TowardsConstant(per_frame=1.0), [video("abc", 6, windows=windows)])
    frame_3 = (1 * (3 + 3) + 2 * (3 + 1)) / 3
    torch.testing.assert_close(found[::2, 0], torch.tensor([3.0, 4, 5, frame_3, 5, 6]))


def test_windows_are_split_into_calls_of_at_most_the_limit_with_the_same_result():
    windows = tuple(overlapping_windows(9, 3, 1))
    model, bounded = TowardsConstant(per_frame=1.0), TowardsConstant(per_frame=1.0)
    (at_once,) = run(model, [video("abc", 9, windows=windows)])
    (in_calls,) = run(bounded, [video("abc", 9, windows=windows)], max_pack_tokens=13)
    assert {call["lengths"] for call in model.calls} == {(6, 6, 6, 6)}
    assert {call["lengths"] for call in bounded.calls} == {(6, 6)}
    torch.testing.assert_close(at_once, in_calls)


class WordTower:
    """Two tokens per text."""

    width = pooled_width = 4

    def encode(self, texts):
        return torch.ones(2 * len(texts), 4), torch.full((len(texts),), 2), torch.ones(len(texts), 4)


SOLVER_STEPS = [
    ("flow", "velocity", "euler", {}),
    ("flow", "velocity", "heun", {"interval": (0.2, 0.9), "rescale": 0.5}),
    ("flow", "x0", "dpmpp_2m", {"power": 2.0}),
    ("scaled_linear", "epsilon", "dpmpp_2m", {}),
    ("cosine", "v", "ddim", {}),
    ("cosine", "v", "ancestral", {}),
]


@pytest.mark.parametrize(("schedule", "prediction", "solver", "guidance"), SOLVER_STEPS)
def test_solver_steps_on_a_gpu_copy_without_waiting_and_read_nothing_back(
    monkeypatch, schedule, prediction, solver, guidance
):
    """In bfloat16 with guidance, registers, conditioning, and windows whose predictions are averaged."""
    model = build(
        "dit", token_width=WIDTH, text_width=4, pooled_width=4, width=24, depth=1, num_heads=2, num_registers=1
    )
    masks, dtypes = [], set()

    def varlen(q_LHD, k_MHD, v_MHD, segments_q, segments_k):
        dtypes.add(q_LHD.dtype)
        masks.append((segments_q, segments_k))
        return attention._loop(q_LHD, k_MHD, v_MHD, segments_q, segments_k)

    def recorded(*args, **kwargs):
        with log.recording():
            return integrate(*args, **kwargs)

    monkeypatch.setattr(attention, "_varlen", varlen)
    monkeypatch.setattr(module, "integrate", recorded)
    clean_LD = torch.zeros(10, WIDTH)
    inputs = [
        video("ab", 2),
        video("c", 5, clean_LD=clean_LD, condition_mask_K=(True, *[False] * 4), windows=tuple(overlapping_windows(5, 3, 1))),
    ]  # fmt: skip
    with pretend_cuda() as log:
        found = denoise(
            model.to("cuda"), inputs, encoder=TextEncoder(WordTower(), spec="words", weights_hash="0"),
            diffusion=DiffusionSettings(schedule=schedule, prediction=prediction, timesteps="uniform"), num_steps=3,
            guidance=Guidance(scale=2.0, **guidance), solver=solver, max_pack_tokens=100, precision="bf16",
        )  # fmt: skip
        log.assert_clean()
        assert log.num_copies
        assert all(tokens_LD.device.type == "cuda" and tokens_LD.isfinite().all() for tokens_LD in found)
    assert dtypes == {torch.bfloat16}
    assert len({(id(queries), id(keys)) for queries, keys in masks}) <= 4, "of one and of two copies, made once each"


def test_a_read_that_is_planted_into_a_solver_step_is_seen():
    segments = Segments.from_lengths([3])
    with pretend_cuda() as log:
        noise_LD = torch.zeros(3, WIDTH, device="cuda")
        times_KS = sampling_timesteps(4, segments, DiffusionSettings())
        with log.recording():
            integrate(lambda x_LD, t_S: x_LD * float(x_LD.sum()), noise_LD, segments.to("cuda"), times_KS)
    assert sum(log.host_syncs.values()) == 4
    assert not log.blocking_copies


class SeesContext(TowardsConstant):
    """Of the new frames 10 more if there are conditioning frames."""

    def forward(self, inputs):
        mask_L = inputs.condition_mask_L
        has_context = inputs.segments.sum(mask_L[:, None].float())[inputs.segments.segment_ids_L] > 0
        return super().forward(inputs) + 10.0 * has_context


@pytest.mark.parametrize(
    ("scale", "context", "expected"),
    [
        (1.0, 1.0, 13.0),
        (1.0, 3.0, 3.0 + 3 * (13 - 3)),
        (2.0, 1.0, 9.0 + 2 * (13 - 9)),
        (2.0, 3.0, -1.0 + 3 * (9 + 1) + 2 * (13 - 9)),
        (2.0, 0.0, -1.0 + 2 * (13 - 9)),
    ],
)
def test_context_guidance_extrapolates_from_the_prediction_without_conditioning_frames(scale, context, expected):
    """f_0 + context (f_S - f_0), and on it the difference that the text makes."""
    model = SeesContext()
    clean_LD = torch.full((6, WIDTH), 5.0)
    one = video(clean_LD=clean_LD, condition_mask_K=(True, False, False))
    (found,) = run(model, [one], guidance=Guidance(scale=scale, context=context))
    torch.testing.assert_close(found[2:], torch.full((4, WIDTH), expected))
    assert torch.equal(found[:2], clean_LD[:2])
    copies = 1 + (scale != 1) + (context != 1)
    noise_LD = torch.randn(6, WIDTH, generator=seeded_generator("sample", 0, 0))
    for call in model.calls:
        assert len(call["lengths"]) == copies
        x, mask = call["x"].chunk(copies), call["mask"].chunk(copies)
        assert torch.equal(x[0][:2], clean_LD[:2])
        if context != 1:
            t = call["t"][-1]
            assert not mask[-1].any()
            torch.testing.assert_close(x[-1][:2], (1 - t) * clean_LD[:2] + t * noise_LD[:2])
            assert torch.equal(x[-1][2:], x[0][2:])
