"""Training a captioner, a VideoCoCa, as a Task of `train.engine.trainer`: from nothing or from another captioner, on any clips.

    task = CaptionerTask(CaptionerSettings())                                   # rendered scenes, from nothing
    task = CaptionerTask(CaptionerSettings(start="tiny", preset="lit"), clips=RunClips(...), held_out=RunClips(...))
    result = train(task, TrainerSettings(num_steps=2000), "RUN/train/captioner")
    load_captioner("RUN/train/captioner")                  # or export it: train.captioner.export

What is said in training follows `stages`; the contrastive head learns descriptive and short captions all along, so that
the text tower knows what people type. The loss is in loss.py, what of the model trains in freezing.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from recaption.captioners.videococa.captioner import CocaCaptioner
from recaption.captioners.videococa.checkpoint import FORMAT_VERSION, captioner_from_config
from recaption.captioners.videococa.tokenizer import BPETokenizer, train_tokenizer
from recaption.errors import UsageError
from train.captioner.batches import CaptionBatches
from train.captioner.clips import CaptionClips, CaptionedClip
from train.captioner.evaluation import evaluate, held_out_clips
from train.captioner.freezing import PRESETS, apply_preset, frozen_modules
from train.captioner.init_weights import Start, check_texts, from_captioner, from_nothing
from train.captioner.loss import captioner_loss
from train.captioner.scene_clips import SceneClips
from train.captioner.stages import kinds_in, parse_stages, prefix_of
from train.engine.task import LossParts

NUM_VOCABULARY_TEXTS = 6000


NUM_CHECKED_TEXTS = 300


@dataclass(frozen=True, kw_only=True)
class CaptionerSettings:
    """The defaults are the architecture of the captioner inside the package. `DESIGN` is for starts from nothing."""

    start: str = ""
    """SPEC of the captioner to go on from: `tiny`, `open_clip:MODEL/TAG` or a folder; empty: from nothing."""
    preset: str = "full"
    """What trains: `full`, `lit` (image encoder frozen) or `frozen` (only poolers and temporal embedding)."""
    stages: tuple[str, ...] = ()
    """What is said when: SHARE:KIND=WEIGHT,... each, such as 0.4:short=1 0.6:descriptive=8,short=1,fields=1; empty:
    descriptive captions all along."""
    temporal: bool = True
    """Tell the order of frames; a start that cannot gets a temporal embedding of zeros."""
    micro_batch: int = 0
    """Clips encoded at a time, in a second pass for the gradient; 0 = the whole batch in one pass."""
    frame_px: int = 96
    """Side of the square that every frame is squeezed into; nothing is cropped."""
    patch_px: int = 16
    num_frames: int = 8
    design: str = "attentional"
    """How frames become one clip: attentional, factorized, joint or mean; see `recaption.captioners.videococa`."""
    vision_width: int = 160
    stem_channels: tuple[int, ...] = ()
    """Widths of the convolutions of stride 2 before the one that makes the patch tokens; () = patches cut straight."""
    vision_layers: int = 4
    """Layers that see one frame."""
    joint_layers: int = 0
    """Further layers, which see the tokens of all frames before they are pooled."""
    fixed_positions: bool = False
    """Sine-cosine positions of the patches, about as loud as the patches, instead of learned ones that start quiet."""
    temporal_std: float = 0.1
    """Of the first values of the temporal embedding; the tokens it is added to have values of about 1."""
    num_queries: int = 33
    """Of the attentional pooler; one is the contrastive token, the others are what the decoder reads."""
    width: int = 128
    """Of text tower, caption decoder and contrastive space."""
    text_layers: int = 2
    decoder_layers: int = 3
    head_width: int = 32
    context_length: int = 80
    """The longest caption of a scene has 58 tokens; the rest is room for what people type."""
    vocabulary_tokens: int = 1000
    """Upper bound; the closed language of the scenes needs fewer."""
    caption_weight: float = 2.0
    """Of the mean cross-entropy per token, CoCa's value."""
    contrastive_weight: float = 1.0
    batch_size: int = 32
    """Clips per rank and batch."""
    num_workers: int = 1
    """Processes that render or read clips in the background; 0 = none."""
    num_validation_scenes: int = 96
    """Held-out scenes or clips that are captioned at each validation."""
    seed: int = 0
    """Of the first weights and of the order of the clips."""

    def check(self) -> None:
        """Raises UsageError where the settings make no sense together."""
        for name in ("vision_width", "width"):
            if getattr(self, name) % self.head_width:
                raise UsageError(f"{name} = {getattr(self, name)} is not a multiple of {self.head_width = }")
        if self.frame_px % self.patch_px:
            raise UsageError(f"{self.frame_px = } is not a multiple of {self.patch_px = }")
        if min(self.batch_size, self.num_frames, self.num_queries - 1) < 1 or self.num_workers < 0:
            raise UsageError(f"batch_size, num_frames must be >= 1, num_queries >= 2, num_workers >= 0: {self}")
        if self.micro_batch < 0:
            raise UsageError(f"{self.micro_batch = } is below 0 (0 = the whole batch in one pass)")
        if self.preset not in PRESETS:
            raise UsageError(f"--preset {self.preset!r}: there are {', '.join(PRESETS)}")
        if not self.start and self.preset != "full":
            raise UsageError(
                f"--preset {self.preset} freezes weights that a start from nothing leaves random: add --start"
            )
        if self.start:
            changed = [name for name in DESIGN if getattr(self, name) != _DEFAULTS[name]]
            if changed:
                raise UsageError(f"a start from {self.start!r} keeps its design: {changed[0]} cannot be set beside it")


DESIGN = (
    "frame_px", "patch_px", "num_frames", "vision_width", "stem_channels", "vision_layers", "joint_layers",
    "fixed_positions", "temporal_std", "num_queries", "width", "text_layers", "decoder_layers", "head_width",
    "context_length", "vocabulary_tokens",
)  # fmt: skip
"""Settings that a start from another captioner has already answered."""


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(CaptionerSettings)}


class CaptionerTask:
    """Implements `train.engine.task.Task`."""

    name = "captioner"

    def __init__(
        self,
        settings: CaptionerSettings | None = None,
        *,
        num_batches: int = 1,
        clips: CaptionClips | None = None,
        held_out: CaptionClips | None = None,
    ) -> None:
        """
        Args:
            num_batches: of the whole training (steps times accumulation); what the shares of several stages are of.
            clips: to learn from; default: rendered scenes.
            held_out: to measure on; default: held-out scenes, which say something of captioners of scenes only.

        Raises:
            UsageError: settings that do not fit together, captions that do not fit the context.
            CheckpointMismatchError: the start's parts do not belong together.
        """
        self.settings = settings or CaptionerSettings()
        self.settings.check()
        self.clips: CaptionClips = clips or SceneClips()
        self.held_out: CaptionClips = held_out or SceneClips(held_out=True)
        self.stages = parse_stages(self.settings.stages, num_batches)
        spoken = [kind for kind in kinds_in(self.stages) if kind in self.clips.kinds]
        start = self._start([prefix_of(kind) for kind in spoken])
        self.tokenizer, self.preprocessor = start.tokenizer, start.preprocessor
        check_texts(self.tokenizer, self.clips.texts(NUM_CHECKED_TEXTS))
        known = start.config.get("kinds", {"descriptive": ""})
        self.prefixes: dict[str, str] = {**{kind: prefix_of(kind) for kind in spoken}, **known}
        self.captioner_config = {**start.config, "kinds": self.prefixes, "fields": self.clips.fields}
        self.model: nn.Module = start.model
        apply_preset(self.model, self.settings.preset)
        stages = [{"until": stage.until, **stage.shares} for stage in self.stages[:-1]] + [self.stages[-1].shares]
        self.config: dict[str, Any] = {
            "captioner": self.captioner_config,
            "start": start.came_from,
            "preset": self.settings.preset,
            "data": {
                **self.clips.description(),
                "batch_size": self.settings.batch_size,
                "seed": self.settings.seed,
                "stages": stages,
            },
            "loss": {"caption": self.settings.caption_weight, "contrastive": self.settings.contrastive_weight},
        }
        self._measured_on: list[CaptionedClip] = []

    def _start(self, prefixes: list[str]) -> Start:
        settings = self.settings
        if settings.start:
            return from_captioner(settings.start, temporal=settings.temporal)
        texts = self.clips.texts(NUM_VOCABULARY_TEXTS)
        tokenizer = train_tokenizer(
            # often enough that each prefix becomes whole words
            [*texts, *(prefix for prefix in prefixes for _ in range(100) if prefix)],
            num_tokens=settings.vocabulary_tokens,
            context_length=settings.context_length,
        )
        config = captioner_config(settings, tokenizer)
        return from_nothing(config, tokenizer, temporal_std=settings.temporal_std, seed=settings.seed)

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[dict[str, Any]]:
        """Batch s of rank r holds the clips at places (s * num_ranks + r) * batch_size and on of the stream."""
        batches = CaptionBatches(
            self.clips,
            self.tokenizer,
            self.preprocessor,
            num_frames=self.captioner_config["num_frames"],
            stages=self.stages,
            prefixes=self.prefixes,
            batch_size=self.settings.batch_size,
            rank=rank,
            num_ranks=num_ranks,
            seed=self.settings.seed,
        )
        return batches.stream(start_step, num_workers=self.settings.num_workers)

    def loss(self, batch: Mapping[str, Any], *, step: int, seed: int) -> LossParts:
        for module in frozen_modules(self.model):
            module.eval()
        loss = captioner_loss(
            self.model,  # type: ignore[arg-type]
            batch,
            self.preprocessor,
            pad=self.tokenizer.special.pad,
            caption_weight=self.settings.caption_weight,
            contrastive_weight=self.settings.contrastive_weight,
            micro_batch=self.settings.micro_batch,
        )
        num_clips = len(batch["pixels_BTHWC"])
        return LossParts(
            loss_sum=loss.total,
            weight=num_clips,
            logs={
                "caption": loss.caption,
                "contrastive": loss.contrastive,
                **({"unreadable_clips": batch["num_unreadable"]} if self.clips.num_clips is not None else {}),
            },
            num_tokens=batch["num_tokens"],
            capacity_tokens=num_clips * self.tokenizer.context_length,
        )

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Caption scores, retrieval, and accuracy per field where it is known, on held-out clips."""
        captioner = self.captioner(model)
        if not self._measured_on:
            self._measured_on = held_out_clips(self.held_out, self.settings.num_validation_scenes, captioner)
        return evaluate(captioner, self._measured_on)

    def captioner(self, model: nn.Module) -> CocaCaptioner:
        """`model` as a captioner; the weights are shared, not copied."""
        flags = [parameter.requires_grad for parameter in model.parameters()]
        device = next(model.parameters()).device
        captioner = captioner_from_config(
            self.captioner_config,
            model,  # type: ignore[arg-type]
            self.tokenizer,
            name="videococa",
            device=device,
        )
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        return captioner


def captioner_config(settings: CaptionerSettings, tokenizer: BPETokenizer) -> dict[str, Any]:
    """What `recaption.captioners.videococa.checkpoint` rebuilds the captioner from."""
    text = {
        "context_length": settings.context_length,
        "vocab_size": tokenizer.num_tokens,
        "width": settings.width,
        "heads": settings.width // settings.head_width,
    }
    return {
        "format": FORMAT_VERSION,
        "coca": {
            "embed_dim": settings.width,
            "vision_cfg": {
                "image_size": settings.frame_px,
                "patch_size": settings.patch_px,
                "width": settings.vision_width,
                "head_width": settings.head_width,
                "layers": settings.vision_layers,
                **({"pos_embed_type": "sin_cos_2d"} if settings.fixed_positions else {}),
                "attentional_pool": True,
                "attn_pooler_queries": settings.num_queries,
                "attn_pooler_heads": settings.width // settings.head_width,
                "output_tokens": True,
            },
            "text_cfg": {
                **text,
                "layers": settings.text_layers,
                "embed_cls": True,
                "output_tokens": True,
                "pad_id": tokenizer.special.pad,
            },
            "multimodal_cfg": {**text, "layers": settings.decoder_layers},
            "pad_id": tokenizer.special.pad,
        },
        **({"stem_channels": list(settings.stem_channels)} if settings.stem_channels else {}),
        **({"joint_layers": settings.joint_layers} if settings.joint_layers else {}),
        "num_frames": settings.num_frames,
        "temporal": settings.temporal,
        "framing": {"frame_px": settings.frame_px, "fit": "squash", "interpolation": "bilinear"},
        "fields": "",
        "merges": tokenizer.merges,
    }
