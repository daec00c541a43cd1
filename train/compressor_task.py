"""Train a compressor on the clips of a run's shards, or on rendered scenes where no run is given.

    task = CompressorTask(CompressorSettings(), RunFolder("RUN"))
    train(task, TrainerSettings(num_steps=2000, lr=2e-3), "RUN/train/vae")
    compressors.load("RUN/train/vae")

What it is trained for stands in compressor_loss.py, what is trained in compressors/autoencoder.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from packing.reader import read_sample
from recaption.errors import ErrorBudgetError, UsageError, VideoError
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder
from recaption.scenes import render
from recaption.video_io import decode_bytes
from train.compressor_loss import CompressorLoss, CompressorLossSettings
from train.compressors import latent_shape
from train.compressors.autoencoder import KINDS, Autoencoder, Reconstruction
from train.compressors.patch_transform import SPATIAL_STRIDE
from train.metrics import psnr_db
from train.picture_quality import ssim
from train.trainer import LossParts

FIRST_HELD_OUT_SCENE = 1_000_000
"""Scenes with seeds from here on are only looked at, never trained on."""
SCENE_FPS = 8
DEFAULT_CHANNELS = {"spatial": 56, "causal3d": 192}
"""With these a few minutes of training reach 30 dB on scenes (bench_compressors.py). What groups of four frames lose is
nearly all motion inside of them: the first frame of a clip comes back at 35 dB."""
MAX_DAMAGED_IN_A_ROW = 20
NUM_SAMPLE_FRAMES = 9

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CompressorSettings:
    kind: str = "causal3d"
    """`causal3d`: a latent frame for the first frame and for every 4 after it; `spatial`: one for every frame (then
    train the transformer with --encode.frame-stride 1)."""
    bottleneck: str = "kl"
    """`kl`: normal distributions; `vq`: vectors of learned lists."""
    latent_channels: int = 0
    """Numbers per latent place, which stands for 8 x 8 px of one frame (192 numbers) or of 4 (768); 0 = 56 or 192."""
    width: int = 96
    """Channels on squares of 4x4 px; twice that on those of 8x8."""
    blocks: tuple[int, int] = (1, 1)
    """Residual blocks of the encoder on squares of 4x4 and of 8x8 px."""
    decoder_blocks: tuple[int, int] = (1, 1)
    vq_codes: int = 512
    """Length of each list. Only with `vq`."""
    vq_groups: int = 16
    """Lists side by side, each for its share of the channels. Only with `vq`."""
    batch_size: int = 4
    """Clips per batch and rank."""
    num_frames: int = 9
    """Of each training clip, 4k+1; longer ones are cut at a random place. Any length can be encoded later."""
    height_px: int = 64
    width_px: int = 64
    """Of each training clip, multiples of 8; larger ones are cut at a random place. Any size can be encoded later."""
    loss: CompressorLossSettings = field(default_factory=CompressorLossSettings)
    num_scenes: int = 20000
    """Rendered scenes trained on, where no run is given."""
    num_validation_scenes: int = 16
    cache_bytes: int = 256 << 20
    """Decoded or rendered clips kept in memory, at most."""
    seed: int = 0
    """Of the first weights and of the order and place of the cuts."""

    def check(self) -> None:
        """Raises UsageError where the settings make no sense."""
        if self.kind not in KINDS:
            raise UsageError(f"compressor kind {self.kind!r} is unknown; there are: {', '.join(KINDS)}")
        latent_shape(
            self.num_frames,
            self.height_px,
            self.width_px,
            frame_stride=KINDS[self.kind],
            spatial_stride=SPATIAL_STRIDE,
            name=self.kind,
        )
        for name in ("batch_size", "num_scenes", "num_validation_scenes"):
            if getattr(self, name) < 1:
                raise UsageError(f"compressor setting {name} = {getattr(self, name)}, it must be at least 1")
        self.loss.check()


class ClipSource(Protocol):
    """Numbered clips; the last few are held out."""

    num_training: int
    num_held_out: int

    def training_clip(self, number: int) -> np.ndarray:
        """uint8 (T, H, W, 3), at least as long and large as asked for. Raises VideoError where it is damaged."""
        ...

    def held_out_clip(self, number: int) -> np.ndarray: ...


class SceneClips:
    """Rendered scenes of exactly the size asked for."""

    def __init__(self, settings: CompressorSettings) -> None:
        self.settings = settings
        self.num_training, self.num_held_out = settings.num_scenes, settings.num_validation_scenes
        self._cached = lru_cache(_num_cached(settings))(self._render)

    def training_clip(self, number: int) -> np.ndarray:
        return self._cached(number)

    def held_out_clip(self, number: int) -> np.ndarray:
        return self._render(FIRST_HELD_OUT_SCENE + number)

    def _render(self, seed: int) -> np.ndarray:
        wanted = self.settings
        scene = render(
            seed, num_frames=wanted.num_frames, height_px=wanted.height_px, width_px=wanted.width_px, fps=SCENE_FPS
        )
        return scene.frames_THWC


class ShardClips:
    """Clips of a run's shards that are long and large enough; about one in twenty is held out.

    Raises:
        UsageError: the run has no index, or no clip fits.
    """

    def __init__(self, run: RunFolder, settings: CompressorSettings) -> None:
        if not run.exists("index.parquet"):
            raise UsageError(f"{run.uri} has no index.parquet; run `recaption shard --run {run.uri}` first")
        everything = from_table(run.read_table("index.parquet"), Sample)
        fitting = [
            row
            for row in everything
            if row.num_frames >= settings.num_frames
            and row.height_px >= settings.height_px
            and row.width_px >= settings.width_px
        ]
        if not fitting:
            raise UsageError(
                f"none of the {len(everything)} clips in {run.uri} has {settings.num_frames} frames of "
                f"{settings.width_px}x{settings.height_px} px; ask for fewer or smaller frames"
            )
        self.run = run
        fitting.sort(key=lambda row: hashlib.sha256(row.clip_id.encode()).digest())
        self.num_held_out = min(settings.num_validation_scenes, max(1, len(fitting) // 20))
        self.held_out = fitting[: self.num_held_out]
        self.training = fitting[self.num_held_out :] or fitting  # one clip alone is both
        self.num_training = len(self.training)
        self._cached = lru_cache(_num_cached(settings, max(fitting, key=_num_bytes)))(self._read)

    def training_clip(self, number: int) -> np.ndarray:
        return self._cached(number)

    def held_out_clip(self, number: int) -> np.ndarray:
        return self._decode(self.held_out[number])

    def _read(self, number: int) -> np.ndarray:
        return self._decode(self.training[number])

    def _decode(self, row: Sample) -> np.ndarray:
        return decode_bytes(read_sample(self.run, row)["mp4"]).pixels_THWC


class CompressorTask:
    """Implements `train.trainer.Task`."""

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


def _num_bytes(row: Sample) -> int:
    return row.num_frames * row.height_px * row.width_px * 3


def _num_cached(settings: CompressorSettings, largest: Sample | None = None) -> int:
    per_clip = settings.num_frames * settings.height_px * settings.width_px * 3
    return max(1, settings.cache_bytes // (per_clip if largest is None else _num_bytes(largest)))
