"""A cascade in pixel space: hints, stages trained on pairs from the clips themselves, samplers that fit each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from packing.buckets import Bucket
from packing.loader.batch import unpatchify
from packing.plan.settings import PlanSettings
from recaption.errors import UsageError
from tests.stand_ins.memory_source import MemorySource
from tests.train.generator.test_task import ColourTower
from train.compressors.registry import load
from train.diffusion.guidance import Guidance
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.generator.settings import DistillSettings, DitSettings
from train.generator.task import DitTask
from train.sampling.cascade import Cascade
from train.sampling.conditioning_frames import text_to_video
from train.sampling.request import Request
from train.sampling.sampler import Sampler
from train.sampling.solver_settings import SolverSettings
from train.sampling.stage import Stage
from train.text.encoder import TextEncoder

TRAINER = TrainerSettings(num_steps=2, lr=1e-2, warmup_steps=0, device="cpu", ema_decay=0.5)
BUCKETS = (Bucket(5, 16, 16, 8), Bucket(1, 16, 24, 8))
BASE, TSR, SSR = "pixels:stride=4,frame-stride=4", "pixels:stride=4,frame-stride=2", "pixels:stride=2,frame-stride=2"


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    encoder = lambda spec, **settings: TextEncoder(ColourTower(), spec="colours", weights_hash="0")  # noqa: E731
    monkeypatch.setattr("train.text.encoder.load", encoder)


def make_task(compressor: str, *, plan: dict | None = None, **settings) -> DitTask:
    """A task over clips of noise, encoded by this compressor."""
    generator = torch.Generator().manual_seed(0)
    loaded, latents, captions = load(compressor), [], []
    for index in range(6):
        bucket = BUCKETS[index % 3 == 2]
        clip = torch.rand(1, 3, bucket.num_frames, bucket.height_px, bucket.width_px, generator=generator) * 2 - 1
        latents.append(loaded.encode(clip)[0].numpy())
        captions.append(("a red field", "a blue field")[index % 2])
    source = MemorySource(latents, [f"clip-{index}" for index in range(6)], captions)
    dit = DitSettings(width=24, depth=1, num_heads=2, patch=(1, 2, 2), **settings)
    return DitTask(source, dit, PlanSettings(capacity=256, **(plan or {})), compressor=compressor, buckets=BUCKETS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of a base and of its two stages, by name."""
    folder = tmp_path_factory.mktemp("cascade")
    with pytest.MonkeyPatch.context() as patched:
        encoder = TextEncoder(ColourTower(), spec="colours", weights_hash="0")
        patched.setattr("train.text.encoder.load", lambda spec, **settings: encoder)
        for name, task in {
            "base": make_task(BASE),
            "tsr": make_task(TSR, stage="tsr"),
            "ssr": make_task(SSR, stage="ssr"),
        }.items():
            train(task, TRAINER, str(folder / name), progress=False)
    return {name: str(folder / name) for name in ("base", "tsr", "ssr")}


def samplers(trained, *names):
    return [Sampler.from_checkpoint(trained[name]) for name in names]


def test_hints_are_the_low_resolution_clip_on_the_clips_own_grid():
    clip = torch.rand(3, 5, 4, 6)
    assert Stage(kind="tsr", ratio=2).hint(clip)[:, :, 0, 0].tolist() == clip[:, [0, 0, 2, 2, 4], 0, 0].tolist()
    low = Stage(kind="ssr", ratio=2).hint(clip)
    assert low.shape == clip.shape
    corner = clip[:, :, :2, :2].mean((2, 3))
    torch.testing.assert_close(low[:, :, 0, 0], corner)
    constant = torch.full((3, 2, 4, 4), 0.3)
    torch.testing.assert_close(Stage(kind="ssr", ratio=2).hint(constant), constant)


def test_what_a_stage_gets_in_sampling_is_what_it_was_trained_on():
    """The clip of the coarser stage, handed on as frames, gives the hint that the clip itself would give."""
    frames_THWC = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    pixels_BCTHW = torch.from_numpy(frames_THWC).movedim(-1, 0)[None].float() / 127.5 - 1
    for kind, fine, coarse in (("tsr", TSR, BASE), ("ssr", SSR, TSR)):
        stage, fine, coarse = Stage(kind=kind, ratio=2), load(fine), load(coarse)
        expected = stage.hint(fine.encode(pixels_BCTHW)[0])
        handed_on = fine.encode(coarse.decode(coarse.encode(pixels_BCTHW)))[0]
        torch.testing.assert_close(stage.hint(handed_on), expected)


def test_a_stage_trains_on_the_noised_hints_of_its_own_clips(trained):
    task = make_task(SSR, stage="ssr")
    batch = next(task.batches(0, 0, 1))
    draws = task.prepared(batch, step=0, seed=0).draws
    level_S = draws.scalars["level"]
    assert 0 <= level_S.min() < level_S.max() <= 1
    clean = dataclasses.replace(task.settings, max_hint_level=0.0)
    task.objective.settings = clean
    hint_LD = task.prepared(batch, step=0, seed=0).draws.hint_LD
    for sample, (tokens_LD, low_LD) in enumerate(
        zip(batch.tokens_LD.split(batch.segments.lengths), hint_LD.split(batch.segments.lengths))
    ):
        shape = batch.token_shapes[sample]
        clip, low = (unpatchify(part_LD, shape, (1, 2, 2)) for part_LD in (tokens_LD, low_LD))
        torch.testing.assert_close(low, task.stage.hint(clip))
    assert all(np.isfinite(value) for value in task.validate(task.model, 0).values())


def test_the_hint_of_a_sample_does_not_depend_on_its_pack():
    task = make_task(SSR, stage="ssr")
    small = make_task(SSR, stage="ssr", plan={"max_latent_frames": ("9",)})
    small.plan = dataclasses.replace(small.plan, capacity=64)
    found = []
    for one in (task, small):
        hints = {}
        for batch in one.batches(0, 0, 1):
            if batch.epoch:
                break
            draws = one.prepared(batch, step=0, seed=0).draws
            hints |= dict(zip(batch.clip_ids, draws.hint_LD.split(batch.segments.lengths)))
        found.append(hints)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][clip_id], found[1][clip_id]) for clip_id in found[0])


def test_a_cascade_samples_stage_after_stage_at_any_size(trained):
    cascade = Cascade(samplers(trained, "base", "tsr", "ssr"))
    requests = [
        Request(text="a red field", conditioning=text_to_video(*shape))
        for shape in ((5, 16, 16), (1, 8, 8), (9, 32, 16))
    ]
    settings = SolverSettings(num_steps=2, guidance=2.0)
    calls = []
    hook = cascade.samplers[2].model.register_forward_pre_hook(lambda model, args: calls.append(args[0].token_shapes))
    together = cascade.sample_requests(requests, settings)
    hook.remove()
    short, windows = calls[:2], calls[2:]
    assert [len(shapes) for shapes in short] == [2 * 2] * 2, "both short clips in one pack with guidance, a call a step"
    assert [len(shapes) for shapes in windows] == [2 * 2] * 2, "two windows of the long one"
    for request, one in zip(requests, together):
        assert one.video_THWC.shape == request.conditioning.frames_THWC.shape
        (alone,) = cascade.sample_requests([request], settings)
        assert np.abs(alone.video_THWC.astype(int) - one.video_THWC).max() <= 1
    blocks = together[0].video_THWC
    assert (blocks[:, ::2, ::2] == blocks[:, 1::2, 1::2]).all(), "the last stage makes squares of 2 px"
    assert (blocks[:, ::4, ::4] != blocks[:, 2::4, 2::4]).any(), "finer than the base"


def test_at_level_1_the_low_resolution_clip_has_no_influence(trained):
    sampler = samplers(trained, "base", "tsr")
    cascade = Cascade(sampler, snr=1e-12)
    seen = []
    sampler[1].model.register_forward_pre_hook(lambda model, args: seen.append(args[0]))
    for text in ("a red field", "a blue field"):
        cascade.sample_requests(
            [Request(text=text, conditioning=text_to_video(5, 16, 16))], SolverSettings(num_steps=1, guidance=1.0)
        )
    torch.testing.assert_close(seen[0].hint_LD, seen[1].hint_LD, atol=1e-4, rtol=0)
    assert float(seen[0].scalars["level"]) == pytest.approx(1, abs=1e-5)


def test_a_dynamic_threshold_bounds_what_a_pixel_model_predicts(trained):
    (base,) = samplers(trained, "base")
    request = [Request(text="a red field", conditioning=text_to_video(5, 16, 16))]
    torch.nn.init.normal_(base.model.final_linear.weight, std=3.0)
    plain, bounded = (
        base.sample_requests(
            request, SolverSettings(num_steps=3, guidance=Guidance(scale=4.0, dynamic_threshold=percentile))
        )
        for percentile in (0.0, 80.0)
    )
    saturated = [float(np.isin(one[0].video_THWC, (0, 255)).mean()) for one in (plain, bounded)]
    assert saturated[1] < saturated[0], "fewer saturated pixels"


def test_stages_that_do_not_fit_are_refused_in_one_sentence(trained, monkeypatch):
    request = [Request(text="", conditioning=text_to_video(5, 16, 16))]
    with pytest.raises(UsageError, match="is a ssr stage of a cascade: name its base before it"):
        samplers(trained, "ssr")[0].sample_requests(request)
    with pytest.raises(UsageError, match="is a tsr stage: name the base of the cascade first"):
        Cascade(samplers(trained, "tsr", "base"))
    with pytest.raises(UsageError, match="is no super-resolution stage"):
        Cascade(samplers(trained, "base", "base"))
    with pytest.raises(UsageError, match=r"takes clips with strides \(2, 4\) .* makes them with \(4, 4\)"):
        Cascade(samplers(trained, "base", "ssr"))
    with pytest.raises(UsageError, match="enlarges pixels, and patch-24 encodes latents"):
        make_task("patch:24", stage="ssr")
    with pytest.raises(UsageError, match="a super-resolution stage sees whole clips"):
        make_task(SSR, stage="ssr", plan={"token_keep_rate": ("0.5",)})
    with pytest.raises(UsageError, match="clips of 4 frames are not 2k"):
        Stage(kind="tsr", ratio=2).check_shape((4, 8, 8))
    with pytest.raises(UsageError, match="do not divide by the ratio 2"):
        Stage(kind="ssr", ratio=2).check_shape((4, 7, 8))
    with pytest.raises(UsageError, match="unknown stage 'up'"):
        make_task(SSR, stage="up")
    with pytest.raises(UsageError, match="cannot be distilled yet"):
        make_task(SSR, stage="ssr", init_from=trained["ssr"], distill=DistillSettings(stage="halve"))
