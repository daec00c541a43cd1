"""Training the transformer: gradients independent of the packing, exact resume, a loss that falls, init_from."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from packing.buckets import Bucket
from packing.loader.loader import PackLoader
from packing.plan.settings import PlanSettings
from recaption.errors import CheckpointMismatchError, UsageError
from tests.stand_ins.memory_source import MemorySource
from tests.stand_ins.pretend_cuda import pretend_cuda
from train.backbones.temporal import TemporalSettings
from train.backbones.uvit import Uvit, UvitSettings
from train.diffusion.guidance import Guidance
from train.diffusion.process import DiffusionSettings, sample_timesteps_and_noise
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.layers import attention
from train.layers.segments import Segments
from train.sampling import sampler as sampler_module
from train.text.encoder import TextEncoder

BUCKETS = (Bucket(5, 16, 16, 8), Bucket(1, 16, 24, 8))
COLOURS = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
SETTINGS = DitSettings(
    width=24, depth=1, num_heads=2, diffusion=DiffusionSettings(shift_tokens=4), caption_dropout=0.25
)


class ColourTower:
    """One token per text: the colour it names."""

    width = pooled_width = 4

    def encode(self, texts):
        tokens = torch.tensor([[float("red" in t), float("blue" in t), 1.0, 0.0] for t in texts])
        return tokens, torch.ones(len(texts), dtype=torch.int64), tokens


class BlockMeans:
    """A compressor of block means."""

    name, num_channels, frame_stride, spatial_stride = "block-means", 3, 4, 8
    config = {"kind": "block-means"}  # noqa: RUF012

    def to(self, device):
        return self

    def encode(self, pixels_BCTHW):
        padded = torch.cat([pixels_BCTHW[:, :, :1].repeat(1, 1, 3, 1, 1), pixels_BCTHW], dim=2)
        return nn.functional.avg_pool3d(padded, (4, 8, 8))

    def decode(self, latents_BCTHW):
        pixels = latents_BCTHW.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return pixels[:, :, 3:]


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """Every spec loads the fakes of this file, also in a checkpoint."""
    monkeypatch.setattr("train.compressors.registry.load", lambda spec, **settings: BlockMeans())
    monkeypatch.setattr("train.text.encoder.load", lambda spec, **settings: make_encoder())


def make_encoder() -> TextEncoder:
    return TextEncoder(ColourTower(), spec="colours", weights_hash="0")


def make_source(num_clips: int = 10, caption: str = "a {} field") -> MemorySource:
    latents, captions = [], []
    for index in range(num_clips):
        colour = list(COLOURS)[index % 2]
        bucket = BUCKETS[index % 3 == 2]
        frames = 1 + (bucket.num_frames - 1) // 4
        latent = np.zeros((3, frames, bucket.height_px // 8, bucket.width_px // 8), np.float32)
        latents.append(latent + np.array(COLOURS[colour], np.float32)[:, None, None, None])
        captions.append(caption.format(colour))
    return MemorySource(latents, [f"clip-{i}" for i in range(num_clips)], captions)


RULES = {
    "too_long": "split",
    "max_latent_frames": ("1@epoch<1",),
    "sampling_weights": ("1.5",),
    "token_keep_rate": ("0.6",),
}
"""Plan rules under which epochs differ in length."""


def make_task(source=None, *, capacity: int = 20, rules=None, **changes) -> DitTask:
    settings = SETTINGS if not changes else DitSettings(**(vars(SETTINGS) | changes))
    return DitTask(source or make_source(), settings, PlanSettings(capacity=capacity, **(rules or {})), buckets=BUCKETS)


def fill_zeros(model: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.2)


def epoch_gradient(task: DitTask, num_ranks: int = 1) -> list[torch.Tensor]:
    """Gradient over the whole first epoch as one step."""
    fill_zeros(task.model)
    loss_sum, weight = torch.zeros(()), torch.zeros(())
    for rank in range(num_ranks):
        for batch in task.batches(0, rank, num_ranks):
            if batch.epoch > 0:
                break
            parts = task.loss(batch, step=0, seed=0)
            loss_sum, weight = loss_sum + parts.loss_sum, weight + parts.weight
    return list(torch.autograd.grad(loss_sum / weight, list(task.model.parameters())))


OBJECTIVES = {
    "flow per sample": {},
    "flow per token": {"loss_norm": "token"},
    "registers": {"num_registers": 2, "absolute_positions": True, "loss_norm": "tokens^0.5"},
    "v": {"diffusion": DiffusionSettings(schedule="cosine", prediction="v", snr_gamma=5.0, shift_rule="area_time")},
    "epsilon": {
        "diffusion": DiffusionSettings(schedule="linear", prediction="epsilon", discrete=True),
        "loss_norm": "token",
    },
    "conditioning frames": {"conditions": ("first=1",), "num_registers": 1},
    "temporal layers": {
        "backbone": "temporal",
        "temporal": TemporalSettings(freeze_base=False),
        "conditions": ("first=0.5", "none=0.5"),
    },
    "x0": {"diffusion": DiffusionSettings(schedule="linear", prediction="x0", zero_terminal_snr=True)},
}


def assert_same_gradient(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """To 1e-5 of the largest entry of each parameter's gradient. Those that should be 0 (the bias of the keys shifts
    all scores of a query alike) are rounding errors themselves."""
    largest = max(float(expected.abs().max()) for expected in other)
    for got, expected in zip(one, other, strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max() + 1e-7 * largest


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=OBJECTIVES)
def test_packing_and_ranks_do_not_change_the_gradient(changes):
    reference = epoch_gradient(make_task(capacity=8, **changes))
    assert max(float(gradient.abs().max()) for gradient in reference) > 0.01, "nothing to compare"
    for capacity, num_ranks in ((20, 1), (60, 1), (20, 2)):
        assert_same_gradient(epoch_gradient(make_task(capacity=capacity, **changes), num_ranks), reference)


def test_packing_and_ranks_do_not_change_the_gradient_of_segments_with_dropped_tokens():
    reference = epoch_gradient(make_task(capacity=8, rules=RULES))
    for capacity, num_ranks in ((20, 1), (60, 2)):
        assert_same_gradient(epoch_gradient(make_task(capacity=capacity, rules=RULES), num_ranks), reference)


def test_a_clip_that_appears_twice_in_an_epoch_has_other_noise_each_time():
    task = make_task(rules={"sampling_weights": ("2",)})
    names = [name for ids in clips_of(task.batches(0, 0, 1), 9) for name in ids]
    assert {"clip-0", "clip-0#1"} <= set(names)
    segments = Segments.from_lengths([4, 4])
    noise_LD = sample_timesteps_and_noise(["clip-0", "clip-0#1"], segments, 3, DiffusionSettings(), key=(0, 0)).noise_LD
    assert not torch.equal(noise_LD[:4], noise_LD[4:])


def test_dropped_tokens_do_not_change_the_timestep_shift():
    """The shift depends on the size of the whole sample, not on the tokens that are left."""
    diffusion = DiffusionSettings(shift=3.0, shift_tokens=4)
    few = Segments.from_lengths([4])
    of_few = sample_timesteps_and_noise(["clip-0"], few, 3, diffusion, key=(0, 0))
    of_rest = sample_timesteps_and_noise(["clip-0"], few, 3, diffusion, key=(0, 0), token_shapes=[(4, 2, 2)])
    of_all = sample_timesteps_and_noise(["clip-0"], Segments.from_lengths([16]), 3, diffusion, key=(0, 0))
    assert of_few.timestep_S < of_rest.timestep_S == of_all.timestep_S
    task = make_task(rules={"token_keep_rate": ("0.5",)})
    batch = next(task.batches(0, 0, 1))
    assert all(math.prod(shape) in (6, 8) for shape in batch.token_shapes)
    assert all(length in (3, 4) for length in batch.segments.lengths)


def test_the_config_of_a_checkpoint_has_every_setting_of_the_plan():
    task = make_task(rules={"token_keep_rate": ("0.5",)})
    assert PlanSettings(**task.config["plan"]) == task.plan


def clips_of(batches, count):
    return [batch.clip_ids for batch in itertools.islice(batches, count)]


def test_registers_count_in_activation_memory_and_flops():
    plain, longer = make_task(), make_task(num_registers=3)
    batch = next(longer.batches(0, 0, 1))
    activations = [task.activation_bytes("fp32", activation_checkpointing=False) for task in (plain, longer)]
    tokens_of_blocks = batch.segments.num_tokens + 3 * len(batch.segments)
    assert activations[1] / activations[0] >= max(1.1, tokens_of_blocks / plain.plan.capacity)
    flops = [task.loss(batch, step=0, seed=0).flops for task in (plain, longer)]
    assert flops[1] > 1.2 * flops[0]


def test_batches_can_start_at_any_step():
    task = make_task()
    straight = clips_of(task.batches(0, 0, 1), 9)
    assert clips_of(make_task().batches(4, 0, 1), 5) == straight[4:]
    by_two_ranks = [clips_of(make_task().batches(0, rank, 2), 4) for rank in range(2)]
    assert [ids for pair in zip(*by_two_ranks) for ids in pair] == straight[:8]


@pytest.mark.parametrize("rules", [{}, RULES])
def test_a_restored_task_continues_at_the_next_pack_on_another_number_of_ranks(rules):
    straight = clips_of(make_task(rules=rules).batches(0, 0, 1), 9)
    before = make_task(rules=rules)
    clips_of(before.batches(0, 0, 2), 2)  # two steps of two ranks: four packs are read
    after = make_task(rules=rules)
    after.load_state_dict(before.state_dict())
    assert clips_of(after.batches(4, 0, 1), 3) == straight[4:7]
    earlier = make_task(rules=rules)
    earlier.load_state_dict(before.state_dict())
    assert clips_of(earlier.batches(2, 0, 1), 3) == straight[2:5], "a batch before the saved ones, too"


def test_a_loader_state_of_other_samples_is_refused():
    before = make_task()
    clips_of(before.batches(0, 0, 1), 1)
    with pytest.raises(CheckpointMismatchError, match="plan"):
        make_task(make_source(num_clips=11)).load_state_dict(before.state_dict())


@pytest.mark.parametrize("rules", [{}, RULES])
def test_a_resumed_training_ends_with_the_same_weights(tmp_path, rules):
    settings = {"lr": 3e-3, "warmup_steps": 1, "device": "cpu", "schedule": "constant", "checkpoint_every": 2}
    whole = make_task(rules=rules)
    train(whole, TrainerSettings(num_steps=5, **settings), str(tmp_path / "whole"), progress=False)
    train(make_task(rules=rules), TrainerSettings(num_steps=2, **settings), str(tmp_path / "cut"), progress=False)
    resumed = make_task(rules=rules)
    result = train(resumed, TrainerSettings(num_steps=5, **settings), str(tmp_path / "cut"), progress=False)
    assert result.resumed_from == 2
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_loss_falls_and_the_checkpoint_samples_the_colour_of_the_prompt(tmp_path):
    task = make_task(capacity=60)
    settings = TrainerSettings(
        num_steps=150, lr=1e-2, warmup_steps=5, device="cpu", log_every=150, ema_decay=0.9, max_grad_norm=1.0
    )
    start = task.validate(task.model, 0)
    result = train(task, settings, str(tmp_path / "dit"), progress=False)
    assert start["loss"] == pytest.approx(start["loss_without_prompt"])
    assert result.validation["loss"] < 0.5 * start["loss"]
    assert result.validation["prompt_gain"] > 0.2
    videos = sampler_module.sample(
        str(tmp_path / "dit"), ["a red field", "a blue field"], num_steps=8, guidance=2.0, progress=False
    )
    assert [video.shape for video in videos] == [(5, 16, 16, 3)] * 2
    red, blue = (video.reshape(-1, 3).mean(0) for video in videos)
    assert red[0] - red[2] > 60
    assert blue[2] - blue[0] > 60


def test_a_checkpoint_whose_compressor_has_changed_is_refused(tmp_path, monkeypatch):
    settings = TrainerSettings(num_steps=1, device="cpu")
    train(make_task(), settings, str(tmp_path / "dit"), progress=False)
    monkeypatch.setattr(BlockMeans, "config", {"kind": "block-medians"})
    with pytest.raises(CheckpointMismatchError, match="block-medians"):
        sampler_module.sample(str(tmp_path / "dit"), ["a red field"], progress=False)


def image_source() -> MemorySource:
    whole = make_source()
    images = [index for index, latent in enumerate(whole.latents) if latent.shape[1] == 1]
    return MemorySource(*([values[i] for i in images] for values in (whole.latents, whole.clip_ids, whole.captions)))


def test_a_video_model_initialised_from_an_image_model_gives_bit_equal_images(tmp_path):
    images = DitTask(image_source(), SETTINGS, PlanSettings(capacity=20), buckets=BUCKETS[1:])
    trainer = TrainerSettings(num_steps=2, lr=1e-2, warmup_steps=0, device="cpu", ema_decay=0.5)
    train(images, trainer, str(tmp_path / "images"), progress=False)
    trained = sampler_module.Sampler.from_checkpoint(str(tmp_path / "images")).model
    init_from = str(tmp_path / "images")
    video = make_task(init_from=init_from, absolute_positions=True, diffusion=DiffusionSettings(shift_tokens=9))
    assert video.config["init_from"]["step"] == 2
    image = next(images.batches(0, 0, 1))
    inputs = image.inputs(image.tokens_LD, torch.rand(len(image.segments)), None)
    assert trained(inputs).abs().max() > 0
    assert torch.equal(video.model(inputs), trained(inputs))
    clip = next(batch for batch in video.batches(0, 0, 1) if max(shape[0] for shape in batch.token_shapes) > 1)
    video.loss(clip, step=0, seed=0).loss_sum.backward()
    assert video.model.x_embedder.pos_embedder.weight.grad.abs().max() > 0, "weights that start at zero are trained"
    video.model.zero_grad()
    first = train(video, trainer, str(tmp_path / "video"), progress=False)
    assert first.steps == 2
    again = make_task(init_from=init_from, absolute_positions=True, diffusion=DiffusionSettings(shift_tokens=9))
    longer = dataclasses.replace(trainer, num_steps=3)
    assert train(again, longer, str(tmp_path / "video"), progress=False).resumed_from == 2


def test_init_from_another_model_is_refused_with_what_differs(tmp_path):
    trainer = TrainerSettings(num_steps=1, device="cpu")
    init_from = str(tmp_path / "first")
    train(make_task(), trainer, init_from, progress=False)
    for match, changes in {
        "backbone width 24 there, 48 here": {"width": 48},
        "backbone num_registers 0 there, 2 here": {"num_registers": 2},
        "diffusion prediction 'velocity' there, 'v' here; diffusion schedule 'flow' there, 'cosine' here": {
            "diffusion": DiffusionSettings(schedule="cosine", prediction="v")
        },
    }.items():
        with pytest.raises(CheckpointMismatchError, match=match):
            make_task(init_from=init_from, **changes)
    with pytest.raises(UsageError, match="not a folder"):
        make_task(init_from=str(tmp_path / "nothing"))


def test_a_checkpoint_of_an_unknown_backbone_is_refused(tmp_path):
    train(make_task(), TrainerSettings(num_steps=1, device="cpu"), str(tmp_path / "dit"), progress=False)
    config = tmp_path / "dit" / "checkpoints" / "step-000001" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"name": "dit"', '"name": "mmm"'))
    with pytest.raises(UsageError, match="unknown backbone 'mmm': choose one of dit"):
        sampler_module.sample(str(tmp_path / "dit"), ["a red field"], progress=False)


def test_a_v_model_on_the_cosine_schedule_trains_and_samples_with_all_its_solvers(tmp_path):
    diffusion = DiffusionSettings(schedule="cosine", prediction="v", snr_gamma=5.0, timesteps="uniform")
    task = make_task(capacity=60, diffusion=diffusion)
    settings = TrainerSettings(num_steps=60, lr=1e-2, warmup_steps=5, device="cpu", log_every=60, ema_decay=0.9)
    start = task.validate(task.model, 0)
    result = train(task, settings, str(tmp_path / "dit"), progress=False)
    assert result.validation["loss"] < 0.5 * start["loss"]
    sampler = sampler_module.Sampler.from_checkpoint(str(tmp_path / "dit"))
    size = sampler.size(None, None, None)
    guidance = Guidance(scale=2.0, interval=(0.2, 0.9), rescale=0.5)
    for solver in ("auto", "dpmpp_2m", "ddim", "ancestral"):
        video = sampler.sample(["a red field"], size=size, num_steps=8, solver=solver, guidance=guidance)[0]
        red, _, blue = video.reshape(-1, 3).mean(0)
        assert red - blue > 30, solver
    with pytest.raises(UsageError, match="'euler' does not go with schedule 'cosine'"):
        sampler.sample(["a red field"], size=size, solver="euler")


def test_validation_is_repeatable_and_changes_no_weights():
    task = make_task()
    fill_zeros(task.model)
    before = [p.detach().clone() for p in task.model.parameters()]
    assert task.validate(task.model, 0) == task.validate(task.model, 7)
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters()))


def test_blank_captions_train_the_null_caption():
    task = make_task(make_source(caption=""), caption_dropout=0.0)
    fill_zeros(task.model)
    batch = next(task.batches(0, 0, 1))
    assert batch.text.segments.num_tokens == 0
    task.loss(batch, step=0, seed=0).loss_sum.backward()
    assert task.model.text_embedder.null_text_embedding_MC.grad.abs().sum() > 0


def test_sample_prompts_give_videos_for_tensorboard():
    task = make_task(sample_prompts=("a red field",))
    video, fps = task.sample(task.model, 0)["sample/0"]
    assert video.shape == (5, 16, 16, 3)
    assert fps == 8
    assert make_task().sample(task.model, 0) == {}


def test_config_is_plain_json_with_every_setting_that_sampling_needs():
    import json

    config = json.loads(json.dumps(make_task().config))
    assert config["buckets"] == ["5f-16x16-8fps", "1f-16x24-8fps"]
    assert config["backbone"]["token_width"] == 3
    assert config["compressor"] == {"spec": "patch", "config": {"kind": "block-means"}}
    assert config["text_encoder"]["spec"] == "colours"


def test_invalid_arguments_are_refused():
    source = make_source()
    source.latents = [latent[:2] for latent in source.latents]
    with pytest.raises(UsageError, match="the latents have 2 channels, compressor 'patch' makes 3"):
        make_task(source)
    with pytest.raises(UsageError, match="not what compressor 'patch' makes"):
        DitTask(make_source(), SETTINGS, PlanSettings(capacity=20), buckets=BUCKETS[:1])
    with pytest.raises(UsageError, match="pass the buckets"):
        DitTask(make_source(), SETTINGS, PlanSettings(capacity=20))
    with pytest.raises(UsageError, match="caption_dropout"):
        make_task(caption_dropout=1.5)
    with pytest.raises(UsageError, match="loss_norm"):
        make_task(loss_norm="mean")
    with pytest.raises(UsageError, match="needs a CUDA device"):
        make_task(attention_backend="varlen")
    with pytest.raises(UsageError, match="settings of uvit have no effect with backbone 'dit'"):
        make_task(uvit=UvitSettings(skips=False))


def test_a_backbone_is_built_with_its_own_settings_and_the_patch():
    task = make_task(backbone="uvit", depth=2, uvit=UvitSettings(skips=False, conv=True))
    assert isinstance(task.model, Uvit)
    assert {"skips": False, "conv": True, "patch": list(task.settings.patch)}.items() <= task.config["backbone"].items()


def test_given_frames_come_clean_and_nothing_is_learned_on_them():
    """Two clips that differ in the given frame only: the model sees that frame, its error there does not count."""
    losses, inputs = [], []
    for first in (0.0, 5.0):
        latent = np.zeros((3, 2, 2, 2), np.float32)
        latent[:, 0] = first
        source = MemorySource([latent], ["clip-0"], ["a red field"])
        task = make_task(source, conditions=("first=1",))
        batch = next(task.batches(0, 0, 1))
        hook = task.model.register_forward_pre_hook(lambda module, args: inputs.append(args[0].tokens_LD))
        losses.append(task.loss(batch, step=0, seed=0))
        hook.remove()
        assert (inputs[-1][:4] == first).all()
        assert task.config["conditions"] == ["first=1"]
    assert losses[0].loss_sum == losses[1].loss_sum, "at the start the model answers 0 everywhere"
    assert losses[0].weight == 1
    assert torch.equal(inputs[0][4:], inputs[1][4:])


def test_a_mix_of_conditions_that_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="middle=1"):
        make_task(conditions=("middle=1",))


def varlen_checkpoint(folder, monkeypatch) -> None:
    """Trained in bfloat16 with varlen attention, on pretended CUDA."""

    def varlen(q_LHD, k_MHD, v_MHD, segments_q, segments_k):
        assert q_LHD.dtype == torch.bfloat16
        return attention._loop(q_LHD, k_MHD, v_MHD, segments_q, segments_k)

    monkeypatch.setattr(attention, "_varlen", varlen)
    with pretend_cuda():
        settings = DitSettings(**(vars(SETTINGS) | {"attention_backend": "varlen"}))
        task = DitTask(make_source(), settings, PlanSettings(capacity=20), buckets=BUCKETS, device="cuda")
        train(task, TrainerSettings(num_steps=2, precision="bf16"), str(folder), progress=False)


def test_a_cpu_samples_and_resumes_what_a_gpu_trained_with_varlen_attention(tmp_path, monkeypatch):
    varlen_checkpoint(tmp_path, monkeypatch)
    size = Bucket(5, 16, 16, 8)
    on_cpu = sampler_module.Sampler.from_checkpoint(str(tmp_path))
    assert "attention_backend" not in on_cpu.model.config
    assert on_cpu.sample(["a red field"], size=size, num_steps=2)[0].shape == (5, 16, 16, 3)
    with pytest.raises(UsageError, match="needs a CUDA device and the tensors are on 'cpu'; use 'loop'"):
        sampler_module.Sampler.from_checkpoint(str(tmp_path), attention_backend="varlen").sample(
            ["a red field"], size=size, num_steps=2
        )
    resumed = train(make_task(), TrainerSettings(num_steps=3, device="cpu"), str(tmp_path), progress=False)
    assert resumed.resumed_from == 2


def test_a_gpu_samples_what_it_trained_in_bfloat16_or_by_flex_in_float32(tmp_path, monkeypatch):
    varlen_checkpoint(tmp_path, monkeypatch)
    backends = []
    for name in ("_varlen", "_flex"):

        def attend(q_LHD, *rest, name=name):
            backends.append((name, q_LHD.dtype))
            return attention._loop(q_LHD, *rest)

        monkeypatch.setattr(attention, name, attend)
    with pretend_cuda():
        sampler = sampler_module.Sampler.from_checkpoint(str(tmp_path), device="cuda")
        for precision in ("auto", "fp32"):
            sampler.sample(["a red field"], size=Bucket(5, 16, 16, 8), num_steps=1, precision=precision)
    assert set(backends) == {("_varlen", torch.bfloat16), ("_flex", torch.float32)}
    with pytest.raises(UsageError, match="precision 'fp16' is unknown; there are: auto, fp32, bf16"):
        sampler.sample(["a red field"], size=Bucket(5, 16, 16, 8), precision="fp16")


def test_held_out_videos_are_never_trained_on_and_both_losses_are_logged(tmp_path, caplog):
    source = make_source(40)
    source.clip_ids = [f"{index // 2:016x}-0000000-{index % 2 + 5:07d}" for index in range(40)]
    task = make_task(source, holdout_share=0.2)
    held_out = set(task.held_out.clip_ids)
    assert 2 <= len(held_out) <= 16
    num_packs = PackLoader(task.training, settings=task.plan, grid=task.grid).num_packs_per_epoch
    seen = {clip for ids in clips_of(task.batches(0, 0, 1), 2 * num_packs) for clip in ids}
    assert seen == set(source.clip_ids) - held_out
    settings = TrainerSettings(num_steps=2, device="cpu", log_every=1)
    result = train(task, settings, str(tmp_path), progress=False)
    validated = {clip for batch in task._validation["held out"] for clip in batch.clip_ids}
    assert validated <= held_out
    assert validated
    assert {"loss", "prompt_gain", "training_loss"} <= set(result.validation)
    assert result.validation["loss"] != result.validation["training_loss"]
    assert "no video is held out" not in caplog.text
    with pytest.raises(CheckpointMismatchError, match="held_out_clips"):
        train(make_task(source, holdout_share=0.0), settings, str(tmp_path), progress=False)


def test_a_small_set_is_validated_on_its_training_packs_and_says_so(tmp_path, caplog):
    task = make_task()
    result = train(task, TrainerSettings(num_steps=1, device="cpu"), str(tmp_path), progress=False)
    assert task.held_out is None
    assert "training_loss" not in result.validation
    assert "val/loss is of packs that are trained on" in caplog.text
