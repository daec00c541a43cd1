"""Train a compressor on the clips of a run's shards, or on rendered scenes where no run is given.

    task = CompressorTask(CompressorSettings(), RunFolder("RUN"))
    train(task, TrainerSettings(num_steps=2000, lr=2e-3), "RUN/train/vae")
    compressors.load("RUN/train/vae")

What it is trained for stands in loss.py, what is trained in compressors/autoencoder.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recaption.errors import ErrorBudgetError, VideoError
from recaption.run_folder import RunFolder
from train.compressors.autoencoder import Autoencoder, Reconstruction
from train.compressors.loss import CompressorLoss
from train.compressors.picture_quality import psnr_db, ssim
from train.compressors.settings import SCENE_FPS, CompressorSettings
from train.compressors.training_clips import ClipSource, SceneClips, ShardClips
from train.engine.task import LossParts

DEFAULT_CHANNELS = {"spatial": 56, "causal3d": 192}
"""With these a few minutes of training reach 30 dB on scenes (bench_compressors.py). What groups of four frames lose is
nearly all motion inside of them: the first frame of a clip comes back at 35 dB."""


MAX_DAMAGED_IN_A_ROW = 20


NUM_SAMPLE_FRAMES = 9


logger = logging.getLogger(__name__)


class CompressorTask:
    """Implements `train.engine.task.Task`."""

    name = "compressor"

    def __init__(self, settings: CompressorSettings, run: RunFolder | None = None) -> None:
        settings.check()
        self.settings = settings
        self.source: ClipSource = SceneClips(settings) if run is None else ShardClips(run, settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = Autoencoder(
                settings.kind,
                width=settings.width,
                latent_channels=settings.latent_channels or DEFAULT_CHANNELS[settings.kind],
                blocks=settings.blocks,
                decoder_blocks=settings.decoder_blocks,
                bottleneck=settings.bottleneck,
                codes=settings.vq_codes,
                groups=settings.vq_groups,
            )
            self.criterion = CompressorLoss(settings.loss, self.model)
        self.config: dict[str, Any] = {
            "model": self.model.config,
            "settings": {k: v for k, v in asdict(settings).items() if k != "cache_bytes"},
            "data": {
                "kind": "scenes" if run is None else "shards",
                "training_clips": self.source.num_training,
                "held_out_clips": self.source.num_held_out,
            },
        }

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[Tensor]:
        """pixels_BTHWC uint8. Every clip once per epoch, in an order and cut at places drawn from the seed."""
        number = start_step
        while True:
            first = (number * num_ranks + rank) * self.settings.batch_size
            cuts = [self._training_cut(index) for index in range(first, first + self.settings.batch_size)]
            yield torch.from_numpy(np.stack(cuts))
            number += 1

    def loss(self, batch: Tensor, *, step: int, seed: int) -> LossParts:
        pixels_BCTHW = to_pixels(batch)
        made: Reconstruction = self.model(pixels_BCTHW)
        loss_B, logs = self.criterion(made, pixels_BCTHW, batch_number=step)
        return LossParts(
            loss_sum=loss_B.sum(), weight=len(loss_B), logs=logs, num_tokens=made.bottled.latents_BCthw[:, 0].numel()
        )

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Over the held-out clips, there and back: mean PSNR, SSIM, feature distance where it is trained for, and how far
        latents are from unit size."""
        assert isinstance(model, Autoencoder)
        perceptual = self.criterion.perceptual
        psnrs, ssims, distances, squares = [], [], [], []
        for pixels_BCTHW in self._held_out(next(model.parameters()).device):
            latents = model.encode(pixels_BCTHW)
            back = model.decode(latents)
            psnrs.append(psnr_db(back, pixels_BCTHW))
            ssims.append(ssim(back, pixels_BCTHW))
            if perceptual is not None:
                distances.append(float(perceptual.to(back.device)(back, pixels_BCTHW)))
            squares.append(latents.float().square().mean().item())
        found = {
            "psnr_db": float(np.mean(psnrs)),
            "ssim": float(np.mean(ssims)),
            "latent_rms": float(np.sqrt(np.mean(squares))),
        }
        return found | ({"perceptual": float(np.mean(distances))} if distances else {})

    def sample(self, model: nn.Module, step: int) -> dict[str, tuple[Any, int]]:
        """The first held-out clip beside what comes back."""
        assert isinstance(model, Autoencoder)
        pixels_BCTHW = next(self._held_out(next(model.parameters()).device))
        back_BCTHW = model.decode(model.encode(pixels_BCTHW)).float()
        both_THWC = torch.cat([pixels_BCTHW, back_BCTHW], dim=-1)[0, :, :NUM_SAMPLE_FRAMES].permute(1, 2, 3, 0)
        return {"reconstruction": (((both_THWC + 1) * 127.5).round().byte().cpu().numpy(), SCENE_FPS)}

    def _held_out(self, device: torch.device) -> Iterator[Tensor]:
        for number in range(self.source.num_held_out):
            cut = self._cut(self.source.held_out_clip(number), np.random.default_rng([self.settings.seed, 2, number]))
            yield to_pixels(torch.from_numpy(cut)[None].to(device))

    def _training_cut(self, index: int) -> np.ndarray:
        """Cut `index` of the endless stream. A damaged clip is replaced by the next of its epoch, and said."""
        epoch, place = divmod(index, self.source.num_training)
        order = self._order(epoch)
        for further in range(MAX_DAMAGED_IN_A_ROW):
            number = int(order[(place + further) % len(order)])
            try:
                clip = self.source.training_clip(number)
            except VideoError as error:
                logger.warning("clip left out of training: %s", error)
                continue
            return self._cut(clip, np.random.default_rng([self.settings.seed, 1, index]))
        raise ErrorBudgetError(f"{MAX_DAMAGED_IN_A_ROW} clips in a row cannot be read; run `recaption verify`")

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.settings.seed, 0, epoch]).permutation(self.source.num_training)

    def _cut(self, clip_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        wanted = (self.settings.num_frames, self.settings.height_px, self.settings.width_px)
        starts = [int(rng.integers(have - want + 1)) for have, want in zip(clip_THWC.shape, wanted)]
        return clip_THWC[tuple(slice(start, start + want) for start, want in zip(starts, wanted))]


def to_pixels(pixels_BTHWC: Tensor) -> Tensor:
    """uint8 frames as float RGB in -1..1, (B, 3, T, H, W): what compressors take."""
    return pixels_BTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
