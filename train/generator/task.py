"""Packs of latents to a trained diffusion transformer: the task that `train.engine.trainer` runs for `recaption train dit`.

    task = DitTask(RunFolder("RUN"), DitSettings(), PlanSettings(capacity=4096), compressor="patch")
    train(task, TrainerSettings(num_steps=2000), "RUN/train/dit")
    sample("RUN/train/dit", ["a red circle moves left"])

Every clip of a row has its own timestep, noise, shift, caption dropout and weight in the loss. All of them are drawn
from (seed, epoch, clip_id), so neither the number of ranks nor the arrangement into rows changes what is learned.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from packing.buckets import Bucket, bucket_name, parse_bucket
from packing.grid import Grid, token_shape_of_latent
from packing.loader.loader import PackLoader
from packing.loader.sources import LatentShards, SampleSource
from packing.plan.settings import PlanSettings
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import RunFolder
from train import compressors
from train.backbones.activation_memory import activation_bytes
from train.backbones.flops import transformer_flops
from train.backbones.registry import build
from train.diffusion.frame_conditioning import draw_given, parse_conditions
from train.diffusion.loss import flow_loss
from train.diffusion.process import PathPoint, draw_path, path_point
from train.diffusion.rng import chance
from train.engine.task import LossParts
from train.generator.batch import DitBatch
from train.generator.init_weights import load_start
from train.generator.objective import _answer
from train.generator.settings import DitSettings
from train.layers.attention import choose_backend
from train.sampling.sampler import Sampler
from train.text import encoder as text_encoder
from train.text.encoder import TextEncoder

VALIDATION_DRAWS = 4
"""Noise levels per clip of the validation rows: one draw alone would be mostly luck."""


class DitTask:
    """Implements `train.engine.task.Task`, with a state and samples."""

    name = "dit"

    def __init__(
        self,
        run: RunFolder | SampleSource,
        settings: DitSettings,
        plan: PlanSettings,
        *,
        latents: str = "patch",
        compressor: str = "patch",
        buckets: Sequence[Bucket] = (),
        encoder: TextEncoder | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            run: a run folder with RUN/latents/<latents>, or any other source of samples.
            compressor: spec of what made the latents; samples are decoded with it.
            buckets: sizes of the samples, the most frequent first; read from the run folder where that is given.
            encoder: in place of the one that `settings.text_encoder` names.
            seed: of the initial weights.
            device: of the text encoder.

        Raises:
            UsageError: no latents, latents that the compressor does not make, or settings that make no sense.
        """
        settings.check()
        choose_backend(settings.attention_backend, device, torch.bfloat16)
        self.settings, self.plan = settings, plan
        if isinstance(run, RunFolder):
            run = LatentShards(run, latents, blend=settings.blend, window_captions=plan.segment_rules.crops_in_time)
        self.source: SampleSource = run
        self.buckets = list(buckets) or _buckets_of(self.source)
        self.encoder = encoder or text_encoder.load(settings.text_encoder, device=device)
        self.compressor = compressors.load(compressor)
        self.grid = Grid(
            frame_stride=self.compressor.frame_stride,
            spatial_stride=self.compressor.spatial_stride,
            patch=settings.patch,
        )
        self._check_latents(compressor)
        backbone = {
            "token_width": self.compressor.num_channels * settings.patch[0] * settings.patch[1] * settings.patch[2],
            "text_width": self.encoder.width,
            "pooled_width": self.encoder.pooled_width,
            "width": settings.width,
            "depth": settings.depth,
            "num_heads": settings.num_heads,
            "attention_backend": settings.attention_backend,
            "num_registers": settings.num_registers,
            "absolute_positions": settings.absolute_positions,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build(settings.backbone, **backbone)
        self.config: dict[str, Any] = {
            "backbone": {"name": settings.backbone, **self.model.config},
            "text_encoder": self.encoder.config,
            "compressor": {"spec": compressor, "config": self.compressor.config},
            "patch": list(settings.patch),
            "path": settings.path.config(),
            "buckets": [bucket_name(bucket) for bucket in self.buckets],
            "caption_dropout": settings.caption_dropout,
            "loss_norm": settings.loss_norm,
            "plan": plan.config(),
        }
        if settings.conditions:
            self.config["conditions"] = list(settings.conditions)
        if isinstance(self.source, LatentShards) and self.source.blend:
            self.config["blend"] = dataclasses.asdict(settings.blend)
        if settings.start:
            self.config["start"] = load_start(settings.start, self.model, self.config)
        self._loader: PackLoader | None = None
        self._num_ranks = 1
        self._restored: dict[str, Any] | None = None
        self._validation: list[DitBatch] | None = None

    def _check_latents(self, compressor: str) -> None:
        """The first latent has the compressor's channels, and the first bucket its size."""
        channels = self.source.read(0).shape[0]
        if channels != self.compressor.num_channels:
            raise UsageError(
                f"the latents have {channels} channels, compressor {compressor!r} makes "
                f"{self.compressor.num_channels}; name the compressor that encoded them"
            )
        shapes = {self.grid.latent_shape(b.num_frames, b.height_px, b.width_px) for b in self.buckets}
        strangers = set(self.source.latent_shapes) - shapes
        if strangers:
            raise UsageError(
                f"latents of shape {sorted(strangers)[0]} are not what compressor {compressor!r} makes of the sizes in "
                "the index: name the compressor that encoded them"
            )

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[DitBatch]:
        loader = PackLoader(
            self.source, settings=self.plan, grid=self.grid, rank=rank, num_ranks=num_ranks, start_step=start_step
        )
        if self._restored is not None:
            loader.load_state_dict(self._restored)
            loader.seek(start_step)
        self._loader, self._num_ranks = loader, num_ranks
        for batch in loader:
            yield DitBatch.of(batch, self.encoder)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from; restores on any number of ranks."""
        if self._loader is None:
            return self._restored or {}
        return self._loader.state_dict() | {"num_ranks": self._num_ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointMismatchError where the samples or the plan are others than then."""
        loader = PackLoader(self.source, settings=self.plan, grid=self.grid, prefetch=0)
        try:
            loader.load_state_dict(state)
        except UsageError as error:
            raise CheckpointMismatchError(str(error)) from error
        self._restored = state

    def loss(self, batch: DitBatch, *, step: int, seed: int) -> LossParts:
        drop_text_S = [
            chance(self.settings.caption_dropout, seed, batch.epoch, "caption dropout", clip_id)
            for clip_id in batch.clip_ids
        ]
        point, timestep_S = self._point(batch, key=(seed, batch.epoch))
        given_L = self._given(batch, key=(seed, batch.epoch))
        loss_sum, weight = self._loss_at(self.model, batch, point, timestep_S, drop_text_S, given_L)
        width, depth, num_registers = self.settings.width, self.settings.depth, self.settings.num_registers
        lengths = [length + num_registers for length in batch.segments.lengths]
        return LossParts(
            loss_sum=loss_sum,
            weight=weight,
            num_tokens=batch.segments.num_tokens,
            capacity_tokens=batch.capacity,
            flops=transformer_flops(lengths, batch.text.segments.lengths, width=width, depth=depth),
        )

    def activation_bytes(self, precision: str, *, recompute: bool) -> int:
        """Of one full row of the shortest samples, which bring the most registers."""
        settings = self.settings
        shortest = min(
            math.prod(token_shape_of_latent(shape, settings.patch)) for shape in set(self.source.latent_shapes)
        )
        num_tokens = self.plan.capacity + settings.num_registers * (self.plan.capacity // shortest)
        size = {"width": settings.width, "depth": settings.depth, "capacity": num_tokens}
        return activation_bytes(**size, precision=precision, recompute=recompute)

    def _point(self, batch: DitBatch, *, key: Sequence[str | int]) -> tuple[PathPoint, Tensor]:
        """Where this visit of the batch, named by `key`, stands on the path, and at what times."""
        path = self.settings.path
        draws = draw_path(
            batch.clip_ids,
            batch.segments,
            batch.tokens_LD.shape[1],
            path,
            key=key,
            token_shapes=batch.token_shapes,
        )
        return path_point(batch.tokens_LD, draws, batch.segments, path), draws.timestep_S

    def _given(self, batch: DitBatch, *, key: Sequence[str | int]) -> Tensor | None:
        """Which tokens of the batch are given on this visit."""
        shares = parse_conditions(self.settings.conditions)
        spans = [(first, first + shape[0]) for first, shape in zip(batch.first_frames, batch.token_shapes, strict=True)]
        return draw_given(shares, batch.clip_ids, batch.segments, batch.position_L3, spans, key=key)

    def _loss_at(
        self,
        model: nn.Module,
        batch: DitBatch,
        point: PathPoint,
        timestep_S: Tensor,
        drop_text_S: Sequence[bool],
        given_L: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Given tokens enter as they are in the clip, and nothing is learned on them."""
        x_LD = point.x_LD if given_L is None else torch.where(given_L[:, None], batch.tokens_LD, point.x_LD)
        return flow_loss(
            _answer(model, batch, x_LD, timestep_S, drop_text_S, given_L),
            point.target_LD,
            batch.segments,
            norm=self.settings.loss_norm,
            weight_S=point.weight_S,
            counted_L=None if given_L is None else ~given_L,
        )

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """`loss_on` fixed rows of the training set."""
        return self.loss_on(model, self._validation_batches()) if self.settings.validation_rows else {}

    @torch.no_grad()
    def loss_on(self, model: nn.Module, batches: Iterable[DitBatch]) -> dict[str, float]:
        """Loss with fixed noise, and how much of it the captions take away.

        `prompt_gain` is loss without captions / loss with them - 1: at 0 the model does not listen to its prompt.
        """
        sums = {"loss": 0.0, "loss_without_prompt": 0.0}
        total_weight = 0.0
        device = next(model.parameters()).device
        for batch in batches:
            batch = batch.to(device)
            for number in range(VALIDATION_DRAWS):
                point, timestep_S = self._point(batch, key=("validation", number))
                for name, drop in (("loss", False), ("loss_without_prompt", True)):
                    drop_text_S = [drop] * len(batch.segments)
                    loss_sum, weight = self._loss_at(model, batch, point, timestep_S, drop_text_S)
                    sums[name] += float(loss_sum)
                total_weight += float(weight)
        found = {name: value / total_weight for name, value in sums.items()}
        return found | {"prompt_gain": found["loss_without_prompt"] / found["loss"] - 1}

    def _validation_batches(self) -> list[DitBatch]:
        if self._validation is None:
            loader = PackLoader(self.source, settings=self.plan, grid=self.grid, prefetch=0)
            rows = zip(range(min(self.settings.validation_rows, loader.num_packs_per_epoch)), loader)
            self._validation = [DitBatch.of(batch, self.encoder) for _, batch in rows]
        return self._validation

    def sample(self, model: nn.Module, step: int) -> dict[str, tuple[Any, int]]:
        """The prompts of the settings at the most frequent size."""
        prompts = self.settings.sample_prompts
        if not prompts:
            return {}
        sampler = Sampler(
            model,
            encoder=self.encoder,
            compressor=self.compressor,
            patch=self.settings.patch,
            path=self.settings.path,
            buckets=self.buckets,
            conditions=self.settings.conditions,
            device=next(model.parameters()).device,
        )
        videos = sampler.sample(prompts, size=sampler.size(None, None, None))
        return {f"sample/{number}": (video, sampler.fps) for number, video in enumerate(videos)}


def _buckets_of(source: SampleSource) -> list[Bucket]:
    """Buckets of the samples, the most frequent first."""
    if not isinstance(source, LatentShards):
        raise UsageError("a source other than a run folder needs its buckets named")
    counts = Counter(row.bucket for row in source.samples)
    return [parse_bucket(name) for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
