"""What a training step copies to the device and reads back, on pretended CUDA: nothing that waits, log lines excepted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from packing.buckets import Bucket
from packing.plan.settings import PlanSettings
from tests.stand_ins.memory_source import MemorySource
from tests.stand_ins.pretend_cuda import pretend_cuda
from train.backbones.diffit_pixels import DiffitPixelsSettings
from train.backbones.mdt import MdtSettings
from train.backbones.separable import SeparableSettings
from train.backbones.temporal import TemporalSettings
from train.backbones.uvit import UvitSettings
from train.captioner.task import CaptionerSettings, CaptionerTask
from train.compressors.loss import CompressorLossSettings
from train.compressors.settings import CompressorSettings
from train.compressors.task import CompressorTask
from train.diffusion.process import DiffusionSettings
from train.engine import trainer
from train.engine.settings import TrainerSettings
from train.engine.trainer import train
from train.generator.settings import DitSettings
from train.generator.task import DitTask
from train.layers import attention
from train.text import encoder as text_encoder

SETTINGS = TrainerSettings(
    num_steps=2, lr=1e-3, warmup_steps=0, precision="bf16", accumulation=2, log_every=2, device="auto"
)


@pytest.fixture
def steps(monkeypatch):
    """Pretended CUDA that records inside optimizer steps only; varlen attention computed sample by sample."""

    def varlen(q_LHD, k_MHD, v_MHD, segments_q, segments_k):
        assert q_LHD.dtype == torch.bfloat16
        return attention._loop(q_LHD, k_MHD, v_MHD, segments_q, segments_k)

    one_step = trainer._Loop._one_step
    monkeypatch.setattr(attention, "_varlen", varlen)
    with pretend_cuda() as log:

        def recorded(loop, batches):
            with log.recording():
                return one_step(loop, batches)

        monkeypatch.setattr(trainer._Loop, "_one_step", recorded)
        yield log


@pytest.fixture
def without_validation(monkeypatch):
    monkeypatch.setattr(trainer._Loop, "_validate_and_sample", lambda loop, **due: {})


def dit_task(**changes) -> DitTask:
    latents = [np.random.default_rng(i).standard_normal((24, 3, 4, 4)).astype(np.float32) for i in range(8)]
    source = MemorySource(latents, [f"clip-{i}" for i in range(8)], ["a red circle", ""] * 4)
    settings = {"width": 48, "depth": 2, "num_heads": 2, "patch": (1, 2, 2), "validation_packs": 1} | changes
    return DitTask(
        source,
        DitSettings(**settings),
        PlanSettings(capacity=64),
        compressor="patch:24,whitening=0.5",
        buckets=[Bucket(9, 32, 32, 8)],
        encoder=text_encoder.load("captioner:tiny"),
        device="cuda",
    )


COSINE = DiffusionSettings(schedule="cosine", prediction="v", timesteps="uniform", snr_gamma=5.0)
DIT = {
    "flow": {"caption_dropout": 0.3},
    "conditions, registers, min-SNR": {
        "conditions": ("none=0.2", "first=0.4", "keyframes=0.4"), "num_registers": 2, "diffusion": COSINE,
        "absolute_positions": True, "sample_prompts": ("a red circle",),
    },
    "flex": {"attention_backend": "flex", "num_registers": 1},
    "diffit_pixels": {"backbone": "diffit_pixels", "depth": 1, "diffit_pixels": DiffitPixelsSettings(stages=2, window=2)},
    "temporal": {
        "backbone": "temporal", "num_registers": 1, "temporal": TemporalSettings(freeze_base=False),
        "conditions": ("none=0.5", "first=0.5"),
    },
    "mdt": {"backbone": "mdt", "depth": 4, "conditions": ("none=0.5", "first=0.5")},
    "mdt, bias": {"backbone": "mdt", "depth": 4, "mdt": MdtSettings(relative_bias=(2, 3, 3))},
    "separable": {"backbone": "separable", "conditions": ("none=0.5", "first=0.5")},
    "separable, conv": {"backbone": "separable", "separable": SeparableSettings(time="conv")},
    "uvit": {
        "backbone": "uvit", "num_registers": 1, "conditions": ("none=0.5", "first=0.5"), "uvit": UvitSettings(conv=True),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DIT)
@pytest.mark.usefixtures("without_validation")
def test_steps_of_the_generator(steps, tmp_path, monkeypatch, name):
    def flex(q_LHD, k_MHD, v_MHD, segments_q, segments_k, *, bias=None):
        assert segments_q.block_mask(segments_k).kv_indices.device.type == "cuda"
        if bias is not None:
            zero = torch.zeros(1, dtype=torch.int64, device="cuda")
            q_LHD = q_LHD + 0 * bias.score_mod()(q_LHD.new_zeros(1), zero, zero, zero, zero)
        return attention._loop(q_LHD, k_MHD, v_MHD, segments_q, segments_k)

    monkeypatch.setattr(attention, "_flex", flex)
    result = train(dit_task(**DIT[name]), SETTINGS, str(tmp_path), progress=False)
    assert result.steps == 2
    assert np.isfinite(result.loss)
    assert steps.num_copies > 4 * 5
    steps.assert_clean()


READING = {"batch_size": 4, "num_workers": 0}
CAPTIONER = READING | {
    "frame_px": 32, "vision_width": 32, "vision_layers": 1, "width": 32, "text_layers": 1, "decoder_layers": 1,
}  # fmt: skip
LIT = READING | {"batch_size": 2, "init_from": "tiny", "trainable": "lit"}


@pytest.mark.parametrize("settings", [CAPTIONER | {"micro_batch": 2}, LIT], ids=["micro-batches", "lit"])
@pytest.mark.usefixtures("without_validation")
def test_steps_of_the_captioner(steps, tmp_path, settings):
    train(CaptionerTask(CaptionerSettings(**settings)), SETTINGS, str(tmp_path), progress=False)
    assert steps.num_copies
    steps.assert_clean()


@pytest.mark.parametrize("kind", ["causal3d", "spatial"])
@pytest.mark.usefixtures("without_validation")
def test_steps_of_the_compressor(steps, tmp_path, kind):
    loss = CompressorLossSettings(
        perceptual_weight=0.1, gradient_weight=0.1, discriminator_weight=0.1, discriminator_start=1
    )
    vq = {"bottleneck": "vq", "codebook_size": 16, "num_codebooks": 4}
    settings = CompressorSettings(
        kind=kind, num_frames=5, height_px=32, width_px=32, num_scenes=4, batch_size=2, width=16,
        **({"loss": loss} if kind == "causal3d" else vq),
    )  # fmt: skip
    train(CompressorTask(settings), SETTINGS, str(tmp_path), progress=False)
    assert steps.num_copies
    steps.assert_clean()


@pytest.mark.usefixtures("without_validation")
def test_what_is_planted_into_a_loss_is_seen(steps, tmp_path):
    class Planted(DitTask):
        def loss(self, batch, *, step, seed):
            parts = super().loss(batch, step=step, seed=seed)
            if step == 0:
                parts.loss_sum.item()
            else:
                torch.ones(1).to(parts.loss_sum.device, non_blocking=True)
            return parts

    task = dit_task()
    task.__class__ = Planted
    train(task, dataclasses.replace(SETTINGS, accumulation=1), str(tmp_path), progress=False)
    for found in (steps.host_syncs, steps.blocking_copies):
        (place,) = found
        assert "test_waits_for_nothing" in place
        assert found[place] == 1


def test_a_run_validates_samples_and_resumes_on_the_device(steps, tmp_path):
    settings = dataclasses.replace(SETTINGS, num_steps=1)
    task = dit_task(sample_prompts=("a red circle",))
    assert train(task, settings, str(tmp_path), progress=False).validation["loss"] > 0
    assert list(tmp_path.glob("samples/*/*.gif"))
    result = train(dit_task(), SETTINGS, str(tmp_path), progress=False)
    assert (result.resumed_from, result.steps) == (1, 2)
