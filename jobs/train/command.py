"""The three trainings as commands: `recaption train captioner`, `train compressor` and `train dit`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from jobs.recipe import presets as recipes
from jobs.recipe.flags import MIXTURE_RULES, SAMPLING, Common, Settings, changed, under
from jobs.recipe.settings import Recipe
from recaption.errors import UsageError

TRAINER = (
    "lr warmup_steps schedule weight_decay ema_decay accumulation precision compile device seed checkpoint_every "
    "validate_every"
)


@dataclass(frozen=True, kw_only=True)
class Training(Common):
    """Flags of the three trainings; with --num-workers N on N ranks (Ray Train)."""

    model: ClassVar[str]
    run: str
    """The run folder."""
    name: str = "main"
    """Name of this training run: RUN/train/NAME."""
    recipe: str | None = None
    """Recipe with the settings; default: the run folder's, or quickstart if it has none."""
    steps: int | None = None
    """Shorthand for the trainer's num-steps."""
    resume: bool = True
    """Resume from the newest checkpoint of this name."""
    use_gpu: bool = False
    """Require one GPU per rank; default: GPUs if there are any (the trainer's `device`)."""
    settings: Settings = field(default_factory=recipes.quickstart)

    def resolved(self) -> Recipe:
        """The settings with the shorthand flags applied."""
        return self.settings

    def __call__(self) -> dict[str, Any]:
        from jobs.train.train import train_model

        with self.cluster() as cluster:
            return train_model(
                self.model, self.run, self.name, self.resolved(), cluster,
                num_steps=self.steps, num_ranks=self.num_workers or 1, use_gpu=self.use_gpu, resume=self.resume,
                progress=self.progress,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DitTraining(Training):
    """Train the diffusion transformer on the packs of a run folder."""

    example: ClassVar[str] = "recaption train dit --run runs/a --name first"
    model: ClassVar[str] = "dit"
    shown = (
        under("train_dit.dit", "width depth num_heads patch text_encoder conditions blend.weights caption_dropout")
        + under("train_dit.dit", "diffusion.schedule diffusion.prediction holdout_share")
        + under("train_dit.trainer", f"{TRAINER} parallel activation_checkpointing")
        + under("plan", f"capacity {MIXTURE_RULES}")
        + ("encode.compressor", "train_dit.evaluation.num_prompts")
    )
    takes = ("plan", "encode.compressor", "train_dit", "caption", *under("sample", SAMPLING))
    init_from: str | None = None
    """Checkpoint of the same transformer to initialise from, e.g. trained on images; default: from scratch. Temporal layers
    name the image model here (temporal-unet: diffusers:ID#unet)."""
    backbone: str | None = None
    """Architecture of the transformer, one of docs/backbones.md; default: dit."""
    stage: str | None = None
    """Stage of a cascade in pixel space: ssr (spatial) or tsr (temporal super-resolution); default: its base."""
    distill: str | None = None
    """Distil the teacher at --init-from: `guidance` into one call, or into a student of this many steps (half of its)."""
    eval: bool = False
    """Do not train: evaluate the newest checkpoint of this name into RUN/train/NAME/evaluation.json."""

    def resolved(self) -> Recipe:
        recipe = changed(
            self.settings, "train_dit.dit", init_from=self.init_from, backbone=self.backbone, stage=self.stage
        )
        return changed(recipe, "train_dit.dit.distill", **self._distillation())

    def _distillation(self) -> dict[str, Any]:
        """Raises UsageError where `distill` is neither `guidance` nor a number of steps."""
        if self.distill in (None, "guidance"):
            return {"stage": self.distill}
        if not self.distill.isdecimal():
            raise UsageError(f"--distill {self.distill}: pass `guidance`, or the number of steps of the student")
        return {"stage": "halve", "num_steps": int(self.distill)}

    def __call__(self) -> dict[str, Any]:
        from jobs.train.train import evaluate_model

        if not self.eval:
            return super().__call__()
        training_flags = {
            "--steps": self.steps is not None,
            "--init-from": self.init_from is not None,
            "--distill": self.distill is not None,
            "--backbone": self.backbone is not None,
            "--no-resume": not self.resume,
            "--num-workers": self.num_workers,
            "--use-gpu": self.use_gpu,
        }
        for flag in (flag for flag, is_set in training_flags.items() if is_set):
            raise UsageError(f"--eval does not train, so {flag} has no effect: leave it out")
        with self.cluster() as cluster:
            return evaluate_model(self.run, self.name, self.settings, cluster, progress=self.progress)


@dataclass(frozen=True, kw_only=True)
class CaptionerTraining(Training):
    """Train a captioner on caption sets or on rendered scenes."""

    example: ClassVar[str] = "recaption train captioner --run runs/a --captions main --init-from tiny --name mine"
    model: ClassVar[str] = "captioner"
    shown = (
        under("train_captioner.captioner", "stages batch_size micro_batch num_frames frame_px design context_length")
        + under("train_captioner.captioner", "caption_weight contrastive_weight")
        + under("train_captioner.trainer", TRAINER)
    )
    takes = ("train_captioner", "filters", "prepare.decode", "caption.snap_seconds")
    captions: tuple[str, ...] = ()
    """Caption sets of the run folder to train on (SET, SET=KIND, `original`); none: rendered scenes."""
    init_from: str | None = None
    """SPEC of the captioner to initialise from; default: from scratch."""
    trainable: str | None = None
    """Trainable weights: full, lit or frozen."""

    def resolved(self) -> Recipe:
        recipe = changed(self.settings, "train_captioner", captions=self.captions)
        return changed(recipe, "train_captioner.captioner", init_from=self.init_from, trainable=self.trainable)


@dataclass(frozen=True, kw_only=True)
class CompressorTraining(Training):
    """Train a compressor (video autoencoder) on shards or on rendered scenes."""

    example: ClassVar[str] = "recaption train compressor --run runs/a --name vae --steps 300"
    model: ClassVar[str] = "compressor"
    shown = under(
        "train_compressor.compressor",
        "kind bottleneck latent_channels width batch_size num_frames height_px width_px",
        "loss.perceptual_weight loss.discriminator_weight",
    ) + under("train_compressor.trainer", f"num_steps {TRAINER}")
    takes = ("train_compressor",)
    init_from: str | None = None
    """SPEC of the image autoencoder that --temporal is about: a folder, or diffusers:ID#vae."""
    temporal: bool = False
    """Train temporal layers in its decoder against flicker; its encoder and its latents stay as they are."""

    def resolved(self) -> Recipe:
        return changed(
            self.settings, "train_compressor.compressor", init_from=self.init_from, temporal=self.temporal or None
        )
