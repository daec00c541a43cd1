"""The training task of the compressor, on the clips of a run's shards or on rendered scenes.

    task = CompressorTask(CompressorSettings(), RunFolder("RUN"))
    train(task, TrainerSettings(num_steps=2000, lr=2e-3), "RUN/train/vae")
    compressors.load("RUN/train/vae")

The loss is in loss.py, the model in autoencoder.py.
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
from recaption.scenes.splits import SCENE_FPS
from train.checkpoint.trained_part import FrozenBase
from train.compressors import registry
from train.compressors.autoencoder import Autoencoder, Reconstruction
from train.compressors.loss import CompressorLoss
from train.compressors.picture_quality import psnr_db, ssim
from train.compressors.pixels import to_frames, to_pixels
from train.compressors.settings import CompressorSettings
from train.compressors.temporal_decoder import KIND, TemporalDecoder, frozen_base
from train.compressors.training_clips import ClipSource, SceneClips, ShardClips
from train.engine.task import LossParts

DEFAULT_CHANNELS = {"spatial": 56, "causal3d": 192}
"""With these, a few minutes of training reach 30 dB on scenes (bench_compressors.py). The loss of four-frame groups is
nearly all motion within them: the first frame of a clip is reconstructed at 35 dB."""
MAX_CONSECUTIVE_DAMAGED = 20
NUM_SAMPLE_FRAMES = 9
logger = logging.getLogger(__name__)


class CompressorTask:
    """Implements `train.engine.task.Task`."""

    name = "compressor"

    def __init__(self, settings: CompressorSettings, run: RunFolder | None = None) -> None:
        settings.check()
        self.settings = settings
        self.source: ClipSource = SceneClips(settings) if run is None else ShardClips(run, settings)
        self.base: FrozenBase | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = self._build_model()
            self.criterion = CompressorLoss(settings.loss, self.model, sees_time=settings.temporal)
        self.config: dict[str, Any] = {
            "model": {"kind": KIND} if isinstance(self.model, TemporalDecoder) else self.model.config,
            "base": None if self.base is None else self.base.config,
            "settings": {k: v for k, v in asdict(settings).items() if k not in ("cache_bytes", "init_from")},
            "data": {
                "kind": "scenes" if run is None else "shards",
                "training_clips": self.source.num_training,
                "held_out_clips": self.source.num_held_out,
            },
        }

    def _build_model(self) -> Autoencoder | TemporalDecoder:
        settings = self.settings
        if settings.temporal:
            compressor: Any = registry.load(settings.init_from)
            model = TemporalDecoder(compressor)
            self.base = frozen_base(settings.init_from, compressor)
            return model
        return Autoencoder(
            settings.kind,
            width=settings.width,
            latent_channels=settings.latent_channels or DEFAULT_CHANNELS[settings.kind],
            blocks=settings.blocks,
            decoder_blocks=settings.decoder_blocks,
            bottleneck=settings.bottleneck,
            codebook_size=settings.codebook_size,
            num_codebooks=settings.num_codebooks,
        )

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[Tensor]:
        """pixels_BTHWC uint8: every clip once per epoch, in seeded random order, with seeded random crops."""
        number = start_step
        while True:
            first = (number * num_ranks + rank) * self.settings.batch_size
            crops = [self._training_crop(index) for index in range(first, first + self.settings.batch_size)]
            yield torch.from_numpy(np.stack(crops))
            number += 1

    def loss(self, batch: Tensor, *, step: int, seed: int) -> LossParts:
        pixels_BCTHW = to_pixels(batch)
        reconstruction: Reconstruction = self.model(pixels_BCTHW)
        loss_B, logs = self.criterion(reconstruction, pixels_BCTHW, batch_number=step)
        return LossParts(
            loss_sum=loss_B.sum(),
            weight=len(loss_B),
            logs=logs,
            num_tokens=reconstruction.bottleneck_output.latents_BCthw[:, 0].numel(),
        )

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Reconstruction of the held-out clips: mean PSNR and SSIM, perceptual distance if it is part of the loss, and the
        RMS of the latents, ideally 1."""
        assert isinstance(model, Autoencoder | TemporalDecoder)
        perceptual = self.criterion.perceptual
        psnrs, ssims, distances, squares = [], [], [], []
        for pixels_BCTHW in self._held_out(next(model.parameters()).device):
            latents = model.encode(pixels_BCTHW)
            recon_BCTHW = model.decode(latents)
            psnrs.append(psnr_db(recon_BCTHW, pixels_BCTHW))
            ssims.append(ssim(recon_BCTHW, pixels_BCTHW))
            if perceptual is not None:
                distances.append(float(perceptual.to(recon_BCTHW.device)(recon_BCTHW, pixels_BCTHW)))
            squares.append(latents.float().square().mean().item())
        metrics = {
            "psnr_db": float(np.mean(psnrs)),
            "ssim": float(np.mean(ssims)),
            "latent_rms": float(np.sqrt(np.mean(squares))),
        }
        return metrics | ({"perceptual": float(np.mean(distances))} if distances else {})

    def sample(self, model: nn.Module, step: int) -> dict[str, tuple[Any, int]]:
        """The first held-out clip and its reconstruction, side by side."""
        assert isinstance(model, Autoencoder | TemporalDecoder)
        pixels_BCTHW = next(self._held_out(next(model.parameters()).device))
        recon_BCTHW = model.decode(model.encode(pixels_BCTHW)).float()
        both_CTHW = torch.cat([pixels_BCTHW, recon_BCTHW], dim=-1)[0, :, :NUM_SAMPLE_FRAMES]
        return {"reconstruction": (to_frames(both_CTHW), SCENE_FPS)}

    def _held_out(self, device: torch.device) -> Iterator[Tensor]:
        for number in range(self.source.num_held_out):
            crop = self._random_crop(
                self.source.held_out_clip(number), np.random.default_rng([self.settings.seed, 2, number])
            )
            yield to_pixels(torch.from_numpy(crop)[None].to(device))

    def _training_crop(self, index: int) -> np.ndarray:
        """Crop `index` of the endless stream; a damaged clip is replaced by the next of its epoch, with a warning."""
        epoch, position = divmod(index, self.source.num_training)
        order = self._order(epoch)
        for skipped in range(MAX_CONSECUTIVE_DAMAGED):
            number = int(order[(position + skipped) % len(order)])
            try:
                clip = self.source.training_clip(number)
            except VideoError as error:
                logger.warning("clip skipped in training: %s", error)
                continue
            return self._random_crop(clip, np.random.default_rng([self.settings.seed, 1, index]))
        raise ErrorBudgetError(f"{MAX_CONSECUTIVE_DAMAGED} clips in a row cannot be read; run `recaption verify`")

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.settings.seed, 0, epoch]).permutation(self.source.num_training)

    def _random_crop(self, clip_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size = (self.settings.num_frames, self.settings.height_px, self.settings.width_px)
        starts = [int(rng.integers(have - want + 1)) for have, want in zip(clip_THWC.shape, size)]
        return clip_THWC[tuple(slice(start, start + want) for start, want in zip(starts, size))]
