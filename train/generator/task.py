"""Training task of the generator: latents of a run folder -> a diffusion transformer (`recaption train dit`).

    task = DitTask(RunFolder("RUN"), DitSettings(), PlanSettings(capacity=4096), compressor="patch")
    train(task, TrainerSettings(num_steps=2000), "RUN/train/dit")
    sample("RUN/train/dit", ["a red circle moves left"])

Every clip of a pack has its own timestep, noise, timestep shift, caption dropout and loss weight, all sampled from
(seed, epoch, clip_id). So neither the number of ranks nor the packing changes the gradient of an epoch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from packing.buckets import Bucket, bucket_name, parse_bucket
from packing.grid import Grid, token_shape_of_latent
from packing.loader.holdout import split_source
from packing.loader.loader import PackLoader
from packing.loader.sources import LatentShards, SampleSource
from packing.plan.settings import PlanSettings
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.run_folder import RunFolder
from train.backbones.bases import unet_config
from train.backbones.flops import cost_model_width
from train.backbones.registry import build
from train.checkpoint.trained_part import FrozenBase
from train.compressors import registry as compressors
from train.compressors.interface import Compressor
from train.diffusion.noise_augmentation import LEVEL
from train.engine.task import LossParts
from train.generator.batch import DitBatch
from train.generator.distillation import distillation_objective, distilled_config, student_scalars
from train.generator.init_weights import load_init_weights
from train.generator.masked_objective import MaskedDiffusionObjective
from train.generator.objective import DiffusionObjective, timesteps_and_noise
from train.generator.settings import DitSettings, backbone_settings
from train.generator.super_resolution import SuperResolution, stage_of
from train.layers.attention import choose_backend
from train.sampling.sampler import Sampler
from train.sampling.stage import Stage
from train.text import encoder as text_encoder
from train.text.encoder import TextEncoder

CAPTIONS_MEASURED = 8
"""Captions whose tokens are counted for the estimate of memory; text takes part in the blocks of some backbones."""
logger = logging.getLogger(__name__)
NUM_VALIDATION_TIMESTEPS = 4
"""Timesteps per validation clip: with a single one the loss is mostly noise."""


class DitTask:
    """Implements `train.engine.task.Task`, with loader state and samples."""

    name = "dit"

    def __init__(
        self,
        run: RunFolder | SampleSource,
        settings: DitSettings,
        plan: PlanSettings,
        *,
        latents: str = "patch",
        compressor: str = "patch",
        loaded_compressor: Compressor | None = None,
        buckets: Sequence[Bucket] = (),
        encoder: TextEncoder | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            run: a run folder with RUN/latents/<latents>, or another source of samples.
            compressor: spec of the compressor that encoded the latents; samples are decoded with it.
            loaded_compressor: of that spec, where the caller has it already.
            buckets: sizes of the samples, the most frequent first; read from a run folder.
            encoder: in place of the one of `settings.text_encoder`.
            seed: of the initial weights.
            device: of the text encoder.

        Raises:
            UsageError: no latents, latents of another compressor, or invalid settings.
        """
        settings.check()
        has_bias = bool(backbone_settings(settings).get("relative_bias"))
        choose_backend(settings.attention_backend, device, torch.bfloat16, has_bias=has_bias)
        self.settings, self.plan = settings, plan  # the plan's costs are asked of the model, once it is built
        if isinstance(run, RunFolder):
            run = LatentShards(run, latents, blend=settings.blend, window_captions=plan.segment_rules.crops_in_time)
        self.source: SampleSource = run
        self.training, self.held_out = split_source(self.source, settings.holdout_share)
        self.buckets = list(buckets) or _buckets_of(self.source)
        self.encoder = encoder or text_encoder.load(settings.text_encoder, device=device)
        self.compressor = loaded_compressor or compressors.load(compressor)
        self.grid = Grid(
            frame_stride=self.compressor.frame_stride,
            spatial_stride=self.compressor.spatial_stride,
            patch=settings.patch,
        )
        self._check_latents(compressor)
        self.stage = stage_of(settings, self.compressor, self.source.latent_shapes)
        self.model = self._build_model(seed)
        self._check_backbone()
        self.plan = plan.with_cost_model_width(cost_model_width(self.model))
        self.objective = objective_of(settings, self.stage)
        self.config = self._checkpoint_config(compressor)
        self.base = self._initialise_from(settings.init_from)
        self._loader: PackLoader | None = None
        self._num_ranks = 1
        self._restored: dict[str, Any] | None = None
        self._validation: dict[str, list[DitBatch]] = {}

    def _build_model(self, seed: int) -> nn.Module:
        """The backbone with newly initialised weights."""
        settings = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            token_width = self.compressor.num_channels * math.prod(settings.patch)
            return build(
                settings.backbone,
                token_width=token_width,
                text_width=self.encoder.width,
                pooled_width=self.encoder.pooled_width,
                **_size(settings),
                attention_backend=settings.attention_backend,
                hint_width=token_width if self.stage else 0,
                scalars=(LEVEL,) if self.stage else student_scalars(settings),
                patch=settings.patch,
                **backbone_settings(settings),
            )

    def _initialise_from(self, path: str) -> FrozenBase | None:
        """Take initial weights from a checkpoint, if one is named; returns it if it is a base that stays frozen."""
        is_over_base = hasattr(self.model, "base_config") and self.settings.temporal.freeze_base
        if is_over_base and not path:
            raise UsageError(
                f"backbone {self.settings.backbone!r} adds temporal layers to an image model: name its checkpoint with "
                "--init-from (one trained with --plan.max-latent-frames 1)"
            )
        if not path:
            return None
        initial = load_init_weights(path, self.model, self.config)
        self.config["init_from"] = initial.config
        if not is_over_base:
            return None
        initial.freeze_base(self.model)
        self.config["base"] = initial.base.config
        return initial.base

    def _check_backbone(self) -> None:
        """Raises UsageError where the plan or the settings ask for what the design of the backbone cannot do."""
        if self.stage and self.plan.token_keep_rate:
            raise UsageError("a super-resolution stage sees whole clips: leave plan.token-keep-rate out")
        wanted = {
            "token dropping": bool(self.plan.token_keep_rate),
            "conditioning frames": bool(self.settings.conditions),
        }
        reasons: dict[str, str] = self.model.unsupported  # type: ignore[assignment]
        for feature, reason in reasons.items():
            if wanted.get(feature):
                raise UsageError(f"backbone {self.settings.backbone!r} has no {feature}: {reason}")

    def _checkpoint_config(self, compressor: str) -> dict[str, Any]:
        """What a checkpoint records: enough to sample from it, and to refuse a resume with other settings."""
        settings = self.settings
        has_blend = isinstance(self.source, LatentShards) and bool(self.source.blend)
        return {
            "backbone": {"name": settings.backbone, **self.model.config},
            "text_encoder": self.encoder.config,
            "compressor": {"spec": compressor, "config": self.compressor.config},
            "patch": list(settings.patch),
            "diffusion": dataclasses.asdict(settings.diffusion),
            "buckets": [bucket_name(bucket) for bucket in self.buckets],
            "caption_dropout": settings.caption_dropout,
            "conditions": list(settings.conditions),
            "blend": dataclasses.asdict(settings.blend) if has_blend else None,
            "loss_norm": settings.loss_norm,
            "plan": dataclasses.asdict(self.plan),
            "held_out_clips": 0 if self.held_out is None else len(self.held_out.clip_ids),
            "init_from": None,
            "distilled": distilled_config(settings),
            "stage": None if self.stage is None else self.stage.config,
            "base": None,
        }

    def _check_latents(self, compressor: str) -> None:
        """Raises UsageError unless the latents have the compressor's channels and the sizes of the buckets."""
        channels = self.source.read(0).shape[0]
        if channels != self.compressor.num_channels:
            raise UsageError(
                f"the latents have {channels} channels, compressor {compressor!r} makes "
                f"{self.compressor.num_channels}; pass the compressor that encoded them"
            )
        shapes = {self.grid.latent_shape(b.num_frames, b.height_px, b.width_px) for b in self.buckets}
        unexpected = set(self.source.latent_shapes) - shapes
        if unexpected:
            raise UsageError(
                f"latents of shape {sorted(unexpected)[0]} are not what compressor {compressor!r} makes of the sizes in "
                "the index: pass the compressor that encoded them"
            )

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[DitBatch]:
        """Packs of one rank, from `start_step` on, without end."""
        loader = PackLoader(
            self.training, settings=self.plan, grid=self.grid, rank=rank, num_ranks=num_ranks, start_step=start_step
        )
        if self._restored is not None:
            loader.load_state_dict(self._restored)
            loader.seek(start_step)
        self._loader, self._num_ranks = loader, num_ranks
        for batch in loader:
            yield DitBatch.from_packed(batch, self.encoder)

    def state_dict(self) -> dict[str, Any]:
        """State of the loader; can be loaded on any number of ranks."""
        if self._loader is None:
            return self._restored or {}
        return self._loader.state_dict() | {"num_ranks": self._num_ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointMismatchError where the samples or the plan have changed since."""
        loader = PackLoader(self.training, settings=self.plan, grid=self.grid, prefetch=0)
        try:
            loader.load_state_dict(state)
        except UsageError as error:
            raise CheckpointMismatchError(str(error)) from error
        self._restored = state

    def prepared(self, batch: DitBatch, *, step: int, seed: int) -> DitBatch:
        """The batch with its noise, conditioning tokens, dropped captions and register rows, ready to be moved."""
        if self.settings.num_registers:
            batch.segments.with_prefix_tokens(self.settings.num_registers)  # kept in the segments, and moved with them
        batch.layouts.built(self.model.layout_keys)  # type: ignore[arg-type]
        return dataclasses.replace(batch, draws=self.objective.draws(batch, seed=seed))

    def loss(self, batch: DitBatch, *, step: int, seed: int) -> LossParts:
        """Loss sum and weight of one pack."""
        draws = (batch if batch.draws else self.prepared(batch, step=step, seed=seed)).draws
        assert draws is not None
        loss_sum, weight = self.objective.loss(self.model, batch, draws)
        return LossParts(
            loss_sum=loss_sum,
            weight=weight,
            num_tokens=batch.segments.num_tokens,
            capacity_tokens=batch.capacity,
            flops=self.objective.flops(self.model, batch),
        )

    def activation_bytes(self, precision: str, *, activation_checkpointing: bool) -> int:
        """Activations of one full pack of the shortest samples, which have the most registers and texts, at the longest of
        a few captions."""
        shortest = min(
            math.prod(token_shape_of_latent(shape, self.settings.patch)) for shape in set(self.source.latent_shapes)
        )
        num_samples = max(1, self.plan.capacity // shortest)
        lengths = [shortest] * (num_samples - 1) + [self.plan.capacity - shortest * (num_samples - 1)]
        captions = [self.source.caption(index, 0) for index in range(min(CAPTIONS_MEASURED, len(self.source.clip_ids)))]
        text_lengths = [self.encoder.encode(captions).segments.max_length] * num_samples
        return self.objective.activation_bytes(
            self.model, lengths, text_lengths, precision=precision, checkpointed=activation_checkpointing
        )

    def frozen_networks(self) -> Sequence[nn.Module]:
        """Those of the objective."""
        return self.objective.frozen_networks()

    def frozen_bytes(self) -> int:
        """Of the text encoder, if it lies on a GPU, and of the compressor, which joins it at the first sampling."""
        towers = [getattr(tower, "model", None) for tower in self.encoder.towers]
        networks: list[nn.Module] = [tower for tower in towers if isinstance(tower, nn.Module) and _is_on_gpu(tower)]
        if self.settings.sample_prompts and isinstance(self.compressor, nn.Module):
            networks.append(self.compressor)
        return sum(parameter.nbytes for network in networks for parameter in network.parameters())

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """`validation_loss` on fixed packs of the held-out videos, and `training_loss`, the same on packs of the training.

        Where no video is held out, `validation_loss` on packs of the training, with a warning.
        """
        if not self.settings.validation_packs:
            return {}
        if self.held_out is None:
            if not self._validation:
                logger.warning(
                    "no video is held out (holdout_share = %s of so few videos): val/loss is of packs that are trained on",
                    self.settings.holdout_share,
                )
            return self.validation_loss(model, self._validation_batches("training", self.training))
        held_out = self.validation_loss(model, self._validation_batches("held out", self.held_out))
        trained = self.validation_loss(model, self._validation_batches("training", self.training))
        return held_out | {"training_loss": trained["loss"]}

    @torch.no_grad()
    def validation_loss(self, model: nn.Module, batches: Iterable[DitBatch]) -> dict[str, float]:
        """Loss at fixed noise, with and without captions.

        `prompt_gain` is loss without captions / loss with them - 1: 0 for a model that ignores its prompt.
        """
        sums = {"loss": 0.0, "loss_without_prompt": 0.0}
        total_weight = 0.0
        device = next(model.parameters()).device
        for batch in batches:
            batch.layouts.built(self.model.layout_keys)  # type: ignore[arg-type]
            batch = batch.to(device)
            for number in range(NUM_VALIDATION_TIMESTEPS):
                noise = timesteps_and_noise(batch, self.settings, key=("validation", number))
                for name, drop in (("loss", False), ("loss_without_prompt", True)):
                    drop_text_S = [drop] * len(batch.segments)
                    loss_sum, weight = self.objective.loss_at(model, batch, noise, drop_text_S)
                    sums[name] += float(loss_sum)
                total_weight += float(weight)
        losses = {name: value / total_weight for name, value in sums.items()}
        return losses | {"prompt_gain": losses["loss_without_prompt"] / losses["loss"] - 1}

    def _validation_batches(self, name: str, source: SampleSource) -> list[DitBatch]:
        """The first packs of a source, read once."""
        if name not in self._validation:
            loader = PackLoader(source, settings=self.plan, grid=self.grid, prefetch=0)
            packs = zip(range(min(self.settings.validation_packs, loader.num_packs_per_epoch)), loader)
            self._validation[name] = [DitBatch.from_packed(batch, self.encoder) for _, batch in packs]
        return self._validation[name]

    def sample(self, model: nn.Module, step: int) -> dict[str, tuple[Any, int]]:
        """Videos of `sample_prompts` at the most frequent size, with their frame rate."""
        prompts = self.settings.sample_prompts
        if not prompts or self.stage is not None:  # a stage enlarges what its base samples
            return {}
        sampler = Sampler(
            model,
            encoder=self.encoder,
            compressor=self.compressor,
            patch=self.settings.patch,
            diffusion=self.settings.diffusion,
            buckets=self.buckets,
            conditions=self.settings.conditions,
            distilled=self.config["distilled"],
            device=next(model.parameters()).device,
        )
        precision = "bf16" if torch.is_autocast_enabled(sampler.device.type) else "fp32"  # that of the training
        videos = sampler.sample(prompts, size=sampler.size(None, None, None), precision=precision)
        return {f"sample/{number}": (video, sampler.fps) for number, video in enumerate(videos)}


def _size(settings: DitSettings) -> dict[str, Any]:
    """Size and form of the backbone: of the settings, or of the U-Net that it is built over."""
    if settings.backbone == "temporal-unet":
        return {"unet": unet_config(settings.init_from)}
    names = ("width", "depth", "num_heads", "num_registers", "absolute_positions")
    return {name: getattr(settings, name) for name in names}


def objective_of(settings: DitSettings, stage: Stage | None) -> DiffusionObjective:
    """The objective of a training with these settings."""
    if settings.distill.stage:
        return distillation_objective(settings)
    objective = DiffusionObjective(settings) if stage is None else SuperResolution(settings, stage)
    is_masked = settings.backbone == "mdt" and bool(settings.mdt.mask_ratio)
    return MaskedDiffusionObjective(objective) if is_masked else objective


def _is_on_gpu(network: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in network.parameters())


def _buckets_of(source: SampleSource) -> list[Bucket]:
    """Buckets of the samples, the most frequent first."""
    if not isinstance(source, LatentShards):
        raise UsageError("buckets are read from a run folder only: pass the buckets of another source")
    counts = Counter(row.bucket for row in source.samples)
    return [parse_bucket(name) for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
