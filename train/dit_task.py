"""Packs of latents to a trained diffusion transformer: the task that `train.trainer` runs for `recaption train dit`.

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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from packing.batch import PackedBatch
from packing.buckets import Bucket, bucket_name, parse_bucket
from packing.grid import Grid, Shape3, patch_shape
from packing.loader import PackLoader
from packing.plan import PlanSettings
from packing.rows import LatentShards, Source
from recaption.blend import BlendSettings, parse_ratios
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import RunFolder
from train import backbones, compressors, text_encoder
from train.attention import Segments, choose_backend
from train.conditions import draw_given, parse_conditions
from train.dit_start import load_start
from train.flops import transformer_flops
from train.flow import PathPoint, PathSettings, chance, draw_path, flow_loss, norm_power, path_point
from train.memory import activation_bytes
from train.sampler import Sampler
from train.text_encoder import EncodedText, TextEncoder
from train.trainer import LossParts

VALIDATION_DRAWS = 4
"""Noise levels per clip of the validation rows: one draw alone would be mostly luck."""


@dataclass(frozen=True, kw_only=True)
class DitSettings:
    """The transformer and what it learns. `train.backbones.dit.SIZES` has the sizes of the literature."""

    start: str = ""
    """Checkpoint of the same transformer to go on from, a step folder or RUN/train/NAME: one trained on images, say, which
    gives the same images at the start. Empty: from nothing."""
    backbone: str = "dit"
    width: int = 192
    depth: int = 6
    num_heads: int = 6
    absolute_positions: bool = False
    """Tell each token where it is on the grid, besides distances (RoPE): small models learn shapes sooner. A start
    without them gains them as zeros."""
    attention_backend: str = "auto"
    """`auto`, `loop`, `varlen` or `flex`; auto is the fastest that runs on the device."""
    num_registers: int = 0
    """Learned tokens that go with every clip through the blocks; beside the plan's capacity, 0 to 8 are usual."""
    patch: tuple[int, int, int] = (1, 1, 1)
    """Latent (frames, rows, columns) per token."""
    text_encoder: str = "captioner:tiny"
    """`captioner:SPEC`, `t5:ID`, `clip:MODEL/TAG`, or several joined by +."""
    caption_dropout: float = 0.1
    """Share of clips trained with the null caption, which guidance needs."""
    conditions: tuple[str, ...] = ()
    """KIND=SHARE: how often which frames of a clip are given clean, for prompts with images and videos: none, first, head,
    tail, ends, keyframes, random (train/conditions.py). Empty: never, and only text and edits can be sampled."""
    blend: BlendSettings = field(default_factory=BlendSettings)
    """Which of its texts a clip is trained with, drawn anew each epoch."""
    loss_norm: str = "sample"
    """`sample`: every clip counts the same; `token`: every token does; `tokens^0.5`: between the two."""
    path: PathSettings = field(default_factory=PathSettings)
    """Which noise levels are trained and sampled, and what is predicted there."""
    validation_rows: int = 2
    """Rows of the first epoch on which the loss is measured with fixed noise."""
    sample_prompts: tuple[str, ...] = ()
    """Sampled at each validation, for TensorBoard."""

    def check(self) -> None:
        """Raises UsageError where a setting makes no sense."""
        parse_ratios(self.blend.ratios)
        parse_conditions(self.conditions)
        if not 0 <= self.caption_dropout <= 1:
            raise UsageError(f"caption_dropout = {self.caption_dropout} must be a share from 0 to 1")
        if self.validation_rows < 0:
            raise UsageError(f"validation_rows = {self.validation_rows} is negative")
        norm_power(self.loss_norm)
        self.path.check()


@dataclass(frozen=True)
class DitBatch:
    """One row, its text encoded."""

    tokens_LD: Tensor
    position_L3: Tensor
    segments: Segments
    text: EncodedText
    token_shapes: tuple[Shape3, ...]
    """Tokens of each sample along (frames, rows, columns), before any were dropped."""
    first_frames: tuple[int, ...]
    """Token frame of its whole clip that each sample begins with."""
    clip_ids: tuple[str, ...]
    epoch: int
    capacity: int

    @classmethod
    def of(cls, batch: PackedBatch, encoder: TextEncoder) -> DitBatch:
        """Padding is left behind: nothing here needs rows of one length."""
        return cls(
            tokens_LD=batch.tokens_LD[: batch.num_tokens],
            position_L3=batch.position_L3[: batch.num_tokens],
            segments=Segments.from_lengths(batch.lengths),
            text=encoder.encode(batch.captions),
            token_shapes=batch.token_shapes,
            first_frames=tuple(frame // batch.patch[0] for frame in batch.first_frames),
            clip_ids=batch.draw_ids,  # each appearance of a clip in an epoch has chances of its own
            epoch=batch.epoch,
            capacity=batch.capacity,
        )

    def to(self, device: torch.device | str) -> DitBatch:
        return dataclasses.replace(
            self,
            tokens_LD=self.tokens_LD.to(device, non_blocking=True),
            position_L3=self.position_L3.to(device, non_blocking=True),
            segments=self.segments.to(device),
            text=self.text.to(device),
        )


class DitTask:
    """Implements `train.trainer.Task`, with a state and samples."""

    name = "dit"

    def __init__(
        self,
        run: RunFolder | Source,
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
            run = LatentShards(run, latents, blend=settings.blend, window_texts=plan.excerpt_rules.cuts)
        self.source: Source = run
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
            self.model = backbones.build(settings.backbone, **backbone)
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
        shortest = min(math.prod(patch_shape(shape, settings.patch)) for shape in set(self.source.latent_shapes))
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
            rows = zip(range(min(self.settings.validation_rows, loader.num_rows_per_epoch)), loader)
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


def _answer(
    model: nn.Module,
    batch: DitBatch,
    x_LD: Tensor,
    timestep_S: Tensor,
    drop_text_S: Sequence[bool],
    given_L: Tensor | None,
) -> Tensor:
    return model(
        x_LD,
        batch.position_L3,
        batch.segments,
        timestep_S,
        batch.text.text_MC,
        batch.text.segments,
        batch.text.pooled_SC,
        drop_text_S=drop_text_S,
        given_L=given_L,
    )


def _buckets_of(source: Source) -> list[Bucket]:
    """Buckets of the samples, the most frequent first."""
    if not isinstance(source, LatentShards):
        raise UsageError("a source other than a run folder needs its buckets named")
    counts = Counter(row.bucket for row in source.rows)
    return [parse_bucket(name) for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
