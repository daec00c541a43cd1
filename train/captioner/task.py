"""The training task of the captioner (VideoCoCa): from scratch or from another captioner, on any CaptionClips source.

    task = CaptionerTask(CaptionerSettings())                                   # rendered scenes, from scratch
    task = CaptionerTask(CaptionerSettings(init_from="tiny", trainable="lit"), clips=RunClips(...), held_out=RunClips(...))
    result = train(task, TrainerSettings(num_steps=2000), "RUN/train/captioner")
    load_captioner("RUN/train/captioner")                  # or export it: train/captioner/export.py

Caption kinds follow a curriculum (`stages`); the contrastive loss always sees descriptive and short captions. The loss is
in loss.py, the trainable parts in freezing.py.
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
from train.captioner.freezing import TRAINABLE, frozen_modules, set_trainable
from train.captioner.init_weights import InitialCaptioner, check_caption_lengths, from_captioner, from_scratch
from train.captioner.loss import captioner_loss, with_micro_batches
from train.captioner.scene_clips import SceneClips
from train.captioner.stages import kinds_in, parse_stages, prefix_of
from train.engine.task import LossParts

NUM_VOCABULARY_TEXTS = 6000
NUM_CHECKED_TEXTS = 300


@dataclass(frozen=True, kw_only=True)
class CaptionerSettings:
    """Settings of captioner training. Those in `ARCHITECTURE_SETTINGS` apply to training from scratch only."""

    init_from: str = ""
    """SPEC of the captioner to start from: `tiny`, `open_clip:MODEL/TAG` or a folder; empty: from scratch."""
    trainable: str = "full"
    """What trains: `full`, `lit` (image encoder frozen) or `frozen` (poolers and temporal embedding only)."""
    stages: tuple[str, ...] = ()
    """Curriculum, FRACTION:KIND=WEIGHT,... per stage, such as 0.4:short=1 0.6:descriptive=8,short=1,fields=1; empty:
    descriptive captions only."""
    temporal: bool = True
    """Use a temporal embedding; it is zero-initialised if the captioner in `init_from` has none."""
    micro_batch: int = 0
    """Clips encoded at a time (GradCache, one more forward); 0 = the whole batch at once."""
    frame_px: int = 96
    """Frames are resized to a square of this side, without cropping."""
    patch_px: int = 16
    num_frames: int = 8
    """Frames per clip, evenly spaced."""
    design: str = "attentional"
    """Temporal pooling: attentional, factorized, joint or mean; see `recaption.captioners.videococa`."""
    vision_width: int = 160
    stem_channels: tuple[int, ...] = ()
    """Channels of stride-2 convolutions before the patch embedding; () = plain patch embedding."""
    vision_layers: int = 4
    """Transformer layers per frame."""
    joint_layers: int = 0
    """Further layers over the tokens of all frames, before pooling."""
    fixed_positions: bool = False
    """Fixed sine-cosine position embeddings of the patches, instead of learned ones, which start small."""
    temporal_std: float = 0.1
    """Initial standard deviation of the temporal embedding; the tokens it is added to have values of about 1."""
    num_queries: int = 33
    """Queries of the attentional pooler: one contrastive token, the others for the decoder."""
    width: int = 128
    """Width of text tower, text decoder and contrastive embeddings."""
    text_layers: int = 2
    decoder_layers: int = 3
    head_width: int = 32
    context_length: int = 80
    """In tokens; the longest caption of a scene has 58."""
    vocabulary_tokens: int = 1000
    """Upper bound of the vocabulary size; the closed language of the scenes needs fewer."""
    caption_weight: float = 2.0
    """Weight of the mean cross-entropy per token, as in CoCa."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss, as in CoCa."""
    batch_size: int = 32
    """Clips per rank and batch."""
    num_workers: int = 1
    """DataLoader worker processes, which render or read clips; 0 = none."""
    num_validation_scenes: int = 96
    """Held-out scenes or clips evaluated at each validation."""
    seed: int = 0
    """Seed of the initial weights and the clip order."""

    def check(self) -> None:
        """Raises UsageError for invalid or incompatible settings."""
        for name in ("vision_width", "width"):
            if getattr(self, name) % self.head_width:
                raise UsageError(f"{name} = {getattr(self, name)} is not a multiple of {self.head_width = }")
        if self.frame_px % self.patch_px:
            raise UsageError(f"{self.frame_px = } is not a multiple of {self.patch_px = }")
        if min(self.batch_size, self.num_frames, self.num_queries - 1) < 1 or self.num_workers < 0:
            raise UsageError(f"batch_size, num_frames must be >= 1, num_queries >= 2, num_workers >= 0: {self}")
        if self.micro_batch < 0:
            raise UsageError(f"{self.micro_batch = } is below 0 (0 = the whole batch at once)")
        if self.trainable not in TRAINABLE:
            raise UsageError(f"--trainable {self.trainable!r}: choose from {', '.join(TRAINABLE)}")
        if not self.init_from and self.trainable != "full":
            raise UsageError(f"--trainable {self.trainable} would freeze randomly initialised weights: add --init-from")
        if self.init_from:
            changed = [name for name in ARCHITECTURE_SETTINGS if getattr(self, name) != _DEFAULTS[name]]
            if changed:
                raise UsageError(
                    f"--init-from {self.init_from!r} fixes the architecture: {changed[0]} cannot be set with it"
                )


ARCHITECTURE_SETTINGS = (
    "frame_px", "patch_px", "num_frames", "vision_width", "stem_channels", "vision_layers", "joint_layers",
    "fixed_positions", "temporal_std", "num_queries", "width", "text_layers", "decoder_layers", "head_width",
    "context_length", "vocabulary_tokens",
)  # fmt: skip
"""Settings that `init_from` determines."""
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
            num_batches: batches of the whole training (steps times accumulation), which the stages divide up.
            clips: training clips; default: rendered scenes.
            held_out: validation clips; default: held-out scenes, which suit captioners of scenes only.

        Raises:
            UsageError: invalid settings, or captions too long for the context.
            CheckpointMismatchError: weights, vocabulary and config of `init_from` do not match.
        """
        self.settings = settings or CaptionerSettings()
        self.settings.check()
        self.clips: CaptionClips = clips or SceneClips()
        self.held_out: CaptionClips = held_out or SceneClips(held_out=True)
        self.stages = parse_stages(self.settings.stages, num_batches)
        kinds = [kind for kind in kinds_in(self.stages) if kind in self.clips.kinds]
        initial = self._initial_captioner([prefix_of(kind) for kind in kinds])
        self.tokenizer, self.preprocessor = initial.tokenizer, initial.preprocessor
        check_caption_lengths(self.tokenizer, self.clips.texts(NUM_CHECKED_TEXTS))
        initial_kinds = initial.config.get("kinds", {"descriptive": ""})
        self.prefixes: dict[str, str] = {**{kind: prefix_of(kind) for kind in kinds}, **initial_kinds}
        self.captioner_config = {**initial.config, "kinds": self.prefixes, "fields": self.clips.fields}
        self.model: nn.Module = initial.model
        set_trainable(self.model, self.settings.trainable)
        stages = [{"end_batch": stage.end_batch, **stage.kind_weights} for stage in self.stages[:-1]]
        stages.append({**self.stages[-1].kind_weights})
        self.config: dict[str, Any] = {
            "captioner": self.captioner_config,
            "init_from": initial.provenance,
            "trainable": self.settings.trainable,
            "data": {
                **self.clips.description(),
                "batch_size": self.settings.batch_size,
                "seed": self.settings.seed,
                "stages": stages,
            },
            "loss": {"caption": self.settings.caption_weight, "contrastive": self.settings.contrastive_weight},
        }
        self._validation_clips: list[CaptionedClip] = []

    def _initial_captioner(self, prefixes: list[str]) -> InitialCaptioner:
        settings = self.settings
        if settings.init_from:
            return from_captioner(settings.init_from, temporal=settings.temporal)
        texts = self.clips.texts(NUM_VOCABULARY_TEXTS)
        tokenizer = train_tokenizer(
            # repeated so that each prefix is tokenised as whole words
            [*texts, *(prefix for prefix in prefixes for _ in range(100) if prefix)],
            num_tokens=settings.vocabulary_tokens,
            context_length=settings.context_length,
        )
        config = captioner_config(settings, tokenizer)
        return from_scratch(config, tokenizer, temporal_std=settings.temporal_std, seed=settings.seed)

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[dict[str, Any]]:
        """Batch n of rank r: the clips at positions (n * num_ranks + r) * batch_size and on of the stream."""
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

    def compiled_modules(self) -> list[nn.Module]:
        """The transformer layers of all towers: the loss never calls the model itself, but `encode_clips` and its kin."""
        from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock

        layers = (ResidualAttentionBlock, CustomResidualAttentionBlock)
        return [module for module in self.model.modules() if isinstance(module, layers)]

    def prepared(self, batch: Mapping[str, Any], *, step: int, seed: int) -> dict[str, Any]:
        """The batch with its micro-batches: which texts each of them uses is found out before it is moved."""
        return with_micro_batches(batch, self.settings.micro_batch)

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
        """Caption metrics, retrieval, and field accuracy if known, on held-out clips."""
        captioner = self.captioner(model)
        if not self._validation_clips:
            self._validation_clips = held_out_clips(self.held_out, self.settings.num_validation_scenes, captioner)
        return evaluate(captioner, self._validation_clips)

    def captioner(self, model: nn.Module) -> CocaCaptioner:
        """`model` as a captioner, sharing its weights."""
        requires_grad = [parameter.requires_grad for parameter in model.parameters()]
        device = next(model.parameters()).device
        captioner = captioner_from_config(
            self.captioner_config,
            model,  # type: ignore[arg-type]
            self.tokenizer,
            name="videococa",
            device=device,
        )
        for parameter, flag in zip(model.parameters(), requires_grad, strict=True):
            parameter.requires_grad_(flag)
        return captioner


def captioner_config(settings: CaptionerSettings, tokenizer: BPETokenizer) -> dict[str, Any]:
    """Config from which `videococa.checkpoint.build_model` rebuilds the captioner."""
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
