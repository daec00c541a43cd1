"""Training the tiny captioner: a small VideoCoCa on rendered scenes, as a Task of `train.trainer`.

    task = CaptionerTask(CaptionerSettings())
    result = train(task, TrainerSettings(num_steps=2000), "RUN/train/captioner")
    load_captioner("RUN/train/captioner")                  # or export it: train.captioner_card

The caption decoder learns long captions only, so greedy decoding is always a long descriptive caption. The contrastive
head learns long and short ones, so that the text tower knows what people type. Loss as in CoCa (arXiv 2205.01917):
contrastive + 2 * cross-entropy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.captioners import Captioner
from recaption.captioners.checkpoint import FORMAT, build_model, weights_hash
from recaption.captioners.coca_captioner import CocaCaptioner
from recaption.captioners.framing import Framing
from recaption.captioners.vocabulary import BytePairVocabulary, train_vocabulary, vocabulary_from_merges
from recaption.errors import UsageError
from recaption.records import CaptionFields
from recaption.scene_captions import fields_in
from train.scene_clips import FIRST_HELD_OUT_SEED, held_out_scene, some_captions, training_clip
from train.trainer import LossParts

FIELDS = tuple(field.name for field in dataclasses.fields(CaptionFields))
MAX_LOGIT_SCALE = 100.0
"""Upper bound of the contrastive temperature's inverse, as in CLIP."""
NUM_VOCABULARY_SCENES = 3000


@dataclass(frozen=True, kw_only=True)
class CaptionerSettings:
    """The defaults are the architecture of the captioner inside the package."""

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
    """Processes that render scenes in the background; 0 = none."""
    num_validation_scenes: int = 96
    seed: int = 0
    """Of the first weights and of the order of the scenes."""

    def check(self) -> None:
        """Raises UsageError where the sizes do not fit together."""
        for name in ("vision_width", "width"):
            if getattr(self, name) % self.head_width:
                raise UsageError(f"{name} = {getattr(self, name)} is not a multiple of {self.head_width = }")
        if self.frame_px % self.patch_px:
            raise UsageError(f"{self.frame_px = } is not a multiple of {self.patch_px = }")
        if min(self.batch_size, self.num_frames, self.num_queries - 1) < 1 or self.num_workers < 0:
            raise UsageError(f"batch_size, num_frames must be >= 1, num_queries >= 2, num_workers >= 0: {self}")


class CaptionerTask:
    """Implements `train.trainer.Task`."""

    name = "captioner"

    def __init__(self, settings: CaptionerSettings | None = None) -> None:
        self.settings = settings or CaptionerSettings()
        self.settings.check()
        self.vocabulary = train_vocabulary(
            some_captions(NUM_VOCABULARY_SCENES),
            num_tokens=self.settings.vocabulary_tokens,
            context_length=self.settings.context_length,
        )
        self.captioner_config = captioner_config(self.settings, self.vocabulary)
        self.framing = Framing(**self.captioner_config["framing"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.model: nn.Module = build_model(self.captioner_config)
            if isinstance(self.model.temporal_embedding, nn.Parameter):
                # zero would hide the order of frames until its first gradients
                nn.init.normal_(self.model.temporal_embedding, std=self.settings.temporal_std)
        self.config: dict[str, Any] = {
            "captioner": self.captioner_config,
            "data": {"name": "scenes", "batch_size": self.settings.batch_size, "seed": self.settings.seed},
            "loss": {"caption": self.settings.caption_weight, "contrastive": self.settings.contrastive_weight},
        }

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[dict[str, Tensor]]:
        """Batch s of rank r holds the clips numbered from (s * num_ranks + r) * batch_size on."""
        from torch.utils.data import DataLoader

        loader = DataLoader(
            _Batches(self.settings, self.vocabulary.merges, self.framing, rank, num_ranks),  # type: ignore[arg-type]
            sampler=_From(start_step),
            batch_size=None,
            num_workers=self.settings.num_workers,
            prefetch_factor=4 if self.settings.num_workers else None,
        )
        return iter(loader)

    def loss(self, batch: Mapping[str, Tensor], *, step: int, seed: int) -> LossParts:
        model: Any = self.model
        coca = model.coca
        long_BM, short_BM = batch["long_BM"], batch["short_BM"]
        clips = model.encode_clips(self.framing.normalise(batch["pixels_BTHWC"]))
        texts = model.encode_texts(torch.cat([long_BM, short_BM]))
        num_clips = len(long_BM)

        pad = self.vocabulary.special.pad
        longest = int((long_BM != pad).sum(dim=1).max())
        logits_BMV = model.caption_logits(clips.tokens_BND, texts.tokens_SMD[:num_clips, : longest - 1])
        targets_BM = long_BM[:, 1:longest]
        caption_loss = F.cross_entropy(logits_BMV.flatten(0, 1).float(), targets_BM.flatten(), ignore_index=pad)

        scale = coca.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        pooled_SD = F.normalize(texts.pooled_SD.float(), dim=-1)
        contrastive_loss = torch.stack(
            [
                contrastive(clips.pooled_BD.float(), part_BD, ids_BM, scale)
                for part_BD, ids_BM in zip(pooled_SD.chunk(2), (long_BM, short_BM), strict=True)
            ]
        ).mean()
        loss = self.settings.caption_weight * caption_loss + self.settings.contrastive_weight * contrastive_loss
        return LossParts(
            loss_sum=loss * num_clips,
            weight=num_clips,
            logs={"caption": caption_loss.detach(), "contrastive": contrastive_loss.detach()},
            num_tokens=num_clips * longest,
            capacity_tokens=num_clips * self.settings.context_length,
        )

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Accuracy per field of greedy captions, and retrieval, on held-out scenes."""
        return evaluate_on_scenes(self.captioner(model), self.settings.num_validation_scenes)

    def captioner(self, model: nn.Module) -> CocaCaptioner:
        """`model` as a captioner; the weights are shared, not copied."""
        flags = [parameter.requires_grad for parameter in model.parameters()]
        captioner = CocaCaptioner(
            model,  # type: ignore[arg-type]
            self.vocabulary,
            self.framing,
            name="videococa",
            weights_hash=weights_hash(model),
            num_frames=self.settings.num_frames,
            read_fields=fields_in,
        )
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        return captioner


class _Batches:
    """Batch number -> tensors; renders the batch's scenes."""

    def __init__(
        self, settings: CaptionerSettings, merges: list[str], framing: Framing, rank: int, num_ranks: int
    ) -> None:
        self.settings, self.merges, self.framing = settings, merges, framing
        self.rank, self.num_ranks = rank, num_ranks
        self._vocabulary: BytePairVocabulary | None = None

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        if self._vocabulary is None:  # made in the worker: tokenizers do not like being forked after use
            self._vocabulary = vocabulary_from_merges(self.merges, context_length=self.settings.context_length)
            _one_thread()
        size = self.settings.batch_size
        first = (step * self.num_ranks + self.rank) * size + self.settings.seed * 7_919
        clips = [
            training_clip(first + index, self.framing, num_frames=self.settings.num_frames) for index in range(size)
        ]
        return {
            "pixels_BTHWC": torch.from_numpy(np.stack([clip.pixels_THWC for clip in clips])),
            "long_BM": self._vocabulary.encode([clip.captions["descriptive"][0] for clip in clips]),
            "short_BM": self._vocabulary.encode([clip.captions["short"][0] for clip in clips]),
        }


class _From:
    """start, start + 1, ... without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


def _one_thread() -> None:
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None:
        import cv2

        cv2.setNumThreads(0)


def captioner_config(settings: CaptionerSettings, vocabulary: BytePairVocabulary) -> dict[str, Any]:
    """What `recaption.captioners.checkpoint` rebuilds the captioner from."""
    text = {
        "context_length": settings.context_length,
        "vocab_size": vocabulary.num_tokens,
        "width": settings.width,
        "heads": settings.width // settings.head_width,
    }
    return {
        "format": FORMAT,
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
                "pad_id": vocabulary.special.pad,
            },
            "multimodal_cfg": {**text, "layers": settings.decoder_layers},
            "pad_id": vocabulary.special.pad,
        },
        **({"stem_channels": list(settings.stem_channels)} if settings.stem_channels else {}),
        **({"joint_layers": settings.joint_layers} if settings.joint_layers else {}),
        "num_frames": settings.num_frames,
        "design": settings.design,
        "temporal": settings.design != "mean",  # a mean over time cannot show it
        "framing": {"frame_px": settings.frame_px, "fit": "squash", "interpolation": "bilinear"},
        "fields": "scenes",
        "merges": vocabulary.merges,
    }


def contrastive(clips_BD: Tensor, texts_BD: Tensor, ids_BM: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; clips whose texts are the same words count as each other's match."""
    same_BB = (ids_BM[:, None] == ids_BM[None, :]).all(dim=-1).float()
    targets_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    logits_BB = scale * clips_BD @ texts_BD.T
    return (F.cross_entropy(logits_BB, targets_BB) + F.cross_entropy(logits_BB.T, targets_BB)) / 2


def evaluate_on_scenes(
    captioner: Captioner, num_scenes: int, first_seed: int = FIRST_HELD_OUT_SEED, *, only_unseen_pairs: bool = False
) -> dict[str, float]:
    """How much of what is in held-out scenes the captioner says, and whether its two spaces agree.

    Returns:
        accuracy/<field>: share of scenes whose greedy caption names the field's true word (and none, where the scene
            shows no text). accuracy/all_fields: all seven at once. accuracy/mean: mean over fields.
        retrieval/text, retrieval/clip: recall at 1 among `num_scenes` true long captions (clips).
        ended: share of captions that pass the gates.
    """
    scenes = [
        held_out_scene(number, first_seed=first_seed, only_unseen_pairs=only_unseen_pairs)
        for number in range(num_scenes)
    ]
    clips = [scene.frames_THWC for scene in scenes]
    captions = captioner.caption(clips)
    hits = np.array(
        [
            [getattr(fields_in(caption.text), field) == getattr(scene.fields, field) for field in FIELDS]
            for caption, scene in zip(captions, scenes, strict=True)
        ]
    )
    cosine = captioner.score(clips, [scene.long_caption for scene in scenes])
    right = np.arange(num_scenes)
    return {
        **{f"accuracy/{field}": float(share) for field, share in zip(FIELDS, hits.mean(axis=0), strict=True)},
        "accuracy/mean": float(hits.mean()),
        "accuracy/all_fields": float(hits.all(axis=1).mean()),
        "retrieval/text": float((cosine.argmax(axis=1) == right).mean()),
        "retrieval/clip": float((cosine.argmax(axis=0) == right).mean()),
        "ended": float(np.mean([caption.reason is None for caption in captions])),
    }
