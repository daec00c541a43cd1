"""Train the `tiny` captioner: poolers, motion path and text decoder over a frozen EfficientNet-Lite0.

    python examples/tiny_captioner/train_tiny.py --photos FOLDER --work WORK --out recaption/captioners/videococa/tiny

Renders clips of photos (with known camera motion) and of scenes, caches the frozen network's features in WORK
(features.py), trains (and resumes), exports fp16 weights, and writes the model card with metrics measured on the exported
weights. Without --photos it trains on scenes alone.

Batches of photos and of scenes alternate, so that texts of a batch have similar lengths and contrastive negatives are of
the same domain. CoCa's loss, plus a motion classification loss on the motion path: the few motion words of the captions
would train that path ten times slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from features import (
    CLIPS_PER_PART,
    NUM_COMPONENTS,
    PREPROCESSOR,
    CachedClips,
    FrozenFeatureExtractor,
    Part,
    load_components,
    read_part,
    write_part,
)
from photo_clips import MOTIONS, Photo, read_photos, split_motion
from torch import Tensor, nn
from tqdm import tqdm

from recaption.captioners.videococa.checkpoint import FORMAT_VERSION
from recaption.captioners.videococa.model import build_coca
from recaption.captioners.videococa.tokenizer import BPETokenizer, train_tokenizer
from recaption.captioners.videococa.two_path import FINE_CELL, FROZEN_BACKBONE, NUM_FRAMES, build_two_path
from recaption.scenes.captions import ATTRIBUTE_VALUES
from train.captioner.batches import text_hash
from train.captioner.loss import MAX_LOGIT_SCALE, contrastive_loss
from train.captioner.scene_clips import random_captions
from train.engine.settings import TrainerSettings
from train.engine.task import LossParts
from train.engine.trainer import train

NUM_VOCABULARY_SCENES = 1500


TRAIN_TAR, TEST_TAR = "flickr8k-train.tar", "flickr8k-devtest.tar"


CAMERAS = tuple(MOTIONS)


ACTIONS = ATTRIBUTE_VALUES["action"]


TRAINER = TrainerSettings(
    lr=1.5e-3,
    warmup_steps=150,
    betas=(0.9, 0.98),
    weight_decay=0.05,
    ema_decay=0.998,
    precision="bf16",
    log_every=20,
    checkpoint_every=200,
)


@dataclass(frozen=True, kw_only=True)
class TinySettings:
    """The defaults are those of the shipped captioner."""

    vision_width: int = 160
    joint_layers: int = 1
    num_queries: int = 33
    width: int = 160
    text_layers: int = 2
    decoder_layers: int = 2
    mlp_ratio: int = 2
    head_width: int = 32
    context_length: int = 80
    vocabulary_tokens: int = 2600
    source_cycle: tuple[str, ...] = ("photos", "scenes", "photos")
    """Repeating sequence of batch sources; scenes have a closed language, learned in half the time."""
    batch_size: int = 48
    captions_per_photo: int = 2
    """Captions per photo and batch, of its five: the decoder costs less than the vision side."""
    max_photo_tokens: int = 34
    """Longer captions (3 in 100) are truncated: the longest text determines the cost of a batch."""
    caption_weight: float = 2.0
    motion_weight: float = 0.5
    label_smoothing: float = 0.1
    dropout: float = 0.1
    """Dropout of the projected cells only: random numbers are expensive on a CPU."""
    seed: int = 0


def tiny_config(settings: TinySettings, tokenizer: BPETokenizer) -> dict[str, Any]:
    """Config from which `videococa.checkpoint.build_model` rebuilds the captioner."""
    text = {
        "context_length": settings.context_length,
        "vocab_size": tokenizer.num_tokens,
        "width": settings.width,
        "heads": settings.width // settings.head_width,
        "mlp_ratio": settings.mlp_ratio,
    }
    pad = tokenizer.special.pad
    return {
        "format": FORMAT_VERSION,
        "coca": {
            "embed_dim": settings.width,
            # a placeholder, replaced by the two paths: open_clip needs a vision tower to build a CoCa
            "vision_cfg": {"image_size": 32, "patch_size": 32, "width": 32, "head_width": 32, "layers": 1}
            | {"attentional_pool": True, "attn_pooler_queries": 2, "attn_pooler_heads": 1, "output_tokens": True},
            "text_cfg": {
                **text,
                "layers": settings.text_layers,
                "embed_cls": True,
                "output_tokens": True,
                "pad_id": pad,
            },
            "multimodal_cfg": {**text, "layers": settings.decoder_layers},
            "pad_id": pad,
        },
        "vision": {
            "frozen": FROZEN_BACKBONE,
            "width": settings.vision_width,
            "queries": settings.num_queries,
            "joint_layers": settings.joint_layers,
        },
        "num_frames": NUM_FRAMES,
        "temporal": True,
        "framing": {
            "frame_px": PREPROCESSOR.frame_px,
            "fit": PREPROCESSOR.fit,
            "interpolation": PREPROCESSOR.interpolation,
            "mean": list(PREPROCESSOR.mean),
            "std": list(PREPROCESSOR.std),
        },
        "fields": "scenes",
        "merges": tokenizer.merges,
    }


def tiny_tokenizer(settings: TinySettings, photos: Sequence[Photo]) -> BPETokenizer:
    """A byte-pair vocabulary trained on captions of scenes and photos."""
    texts = random_captions(NUM_VOCABULARY_SCENES)
    texts += [f"{phrase}." for phrase in MOTIONS.values() for _ in range(50)]
    texts += [f"{caption}." for photo in photos for caption in photo.captions]
    return train_tokenizer(texts, num_tokens=settings.vocabulary_tokens, context_length=settings.context_length)


class TinyTraining(nn.Module):
    """The captioner over reduced features, and two motion heads that are not exported."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.captioner = build_two_path(
            build_coca(config["coca"]), config["vision"], slow_feature_width=FINE_CELL + NUM_COMPONENTS
        )
        width = config["vision"]["width"]
        self.camera_head = nn.Linear(width, len(CAMERAS))
        self.action_head = nn.Linear(width, len(ACTIONS))


class TinyTask:
    """Implements `train.engine.task.Task` over a folder of cached clips."""

    name = "captioner"

    def __init__(
        self, settings: TinySettings, photos: Sequence[Photo], folder: Path, parts: Mapping[str, Sequence[Part]]
    ) -> None:
        """
        Args:
            parts: source -> its parts in `folder`; sources without parts are skipped.
        """
        self.settings, self.folder = settings, folder
        self.parts = {source: list(of_source) for source, of_source in parts.items() if of_source}
        self.tokenizer = tiny_tokenizer(settings, photos)
        self.captioner_config = tiny_config(settings, self.tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model: nn.Module = TinyTraining(self.captioner_config)
        self.config: dict[str, Any] = {
            "captioner": self.captioner_config,
            "data": {source: len(of_source) for source, of_source in self.parts.items()},
            "loss": {"caption": settings.caption_weight, "motion": settings.motion_weight},
        }

    def batches(self, start_step: int, rank: int, num_ranks: int) -> Iterator[dict[str, Tensor]]:
        cached = {source: [read_part(self.folder, part) for part in parts] for source, parts in self.parts.items()}
        source_cycle = [source for source in self.settings.source_cycle if source in cached]
        step = start_step
        while True:
            source = source_cycle[step % len(source_cycle)]
            rng = np.random.default_rng([self.settings.seed, step, rank])
            yield self._batch(cached[source], rng)
            step += 1

    def _batch(self, parts: Sequence[CachedClips], rng: np.random.Generator) -> dict[str, Tensor]:
        sizes = [len(part.motions) for part in parts]
        numbers = rng.choice(sum(sizes), size=self.settings.batch_size, replace=False)
        ends = np.cumsum(sizes)
        locations = [
            (int(k), int(n - (ends[k] - sizes[k]))) for n in numbers for k in [np.searchsorted(ends, n, "right")]
        ]
        per_clip = min(self.settings.captions_per_photo, min(len(parts[k].long_captions[i]) for k, i in locations))
        long, short, cameras, actions = [], [], [], []
        for k, i in locations:
            part = parts[k]
            order = rng.permutation(len(part.long_captions[i]))
            long.append([part.long_captions[i][j] for j in order[:per_clip]])
            short.append(part.short_captions[i][int(order[-1]) % len(part.short_captions[i])])
            is_action = part.motions[i] in ACTIONS
            actions.append(ACTIONS.index(part.motions[i]) if is_action else -1)
            cameras.append(CAMERAS.index(split_motion(long[-1][0])[1]) if is_action else CAMERAS.index(part.motions[i]))
        long_ids = self.tokenizer.encode([text for texts in zip(*long, strict=True) for text in texts])
        if per_clip > 1:
            long_ids = long_ids[:, : self.settings.max_photo_tokens]
        short_ids = self.tokenizer.encode(short)[:, : long_ids.shape[1]]
        positives_KBM = (long_ids[: len(short)].tolist(), short_ids.tolist())
        return {
            "semantic_BSLC": torch.from_numpy(np.stack([parts[k].semantic_NSLC[i] for k, i in locations])),
            "motion_BTHWC": torch.from_numpy(np.stack([parts[k].motion_NTHWC[i] for k, i in locations])),
            "long_SM": long_ids,
            "short_BM": short_ids,
            "text_hash_KB": torch.tensor([[text_hash(str(ids)) for ids in ids_BM] for ids_BM in positives_KBM]),
            "camera_B": torch.tensor(cameras),
            "action_B": torch.tensor(actions),
        }

    def loss(self, batch: Mapping[str, Tensor], *, step: int, seed: int) -> LossParts:
        model: Any = self.model
        coca = model.captioner.coca
        long_SM, short_BM = batch["long_SM"], batch["short_BM"]
        num_clips = len(short_BM)
        clips_BD, tokens_BND, motion_BD = encode(model, batch, dropout=self.settings.dropout)
        texts = model.captioner.encode_texts(torch.cat([long_SM, short_BM]))

        pad = self.tokenizer.special.pad
        longest = int((long_SM != pad).sum(dim=1).max())
        repeated_BND = tokens_BND.repeat(len(long_SM) // num_clips, 1, 1)
        targets_SM = long_SM[:, 1:longest]
        logits = next_token_logits(
            coca.text_decoder, repeated_BND, texts.tokens_SMD[: len(long_SM), : longest - 1], targets_SM != pad
        )
        caption_loss = F.cross_entropy(
            logits.float(), targets_SM[targets_SM != pad], label_smoothing=self.settings.label_smoothing
        )
        scale = coca.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        pooled_SD = F.normalize(texts.pooled_SD.float(), dim=-1)
        texts_KBD = torch.stack([pooled_SD[:num_clips], pooled_SD[-num_clips:]])
        contrastive = contrastive_loss(clips_BD.float(), texts_KBD, batch["text_hash_KB"], scale) / num_clips
        motion_loss = F.cross_entropy(model.camera_head(motion_BD).float(), batch["camera_B"])
        if (batch["action_B"] >= 0).any():
            action_loss = F.cross_entropy(model.action_head(motion_BD).float(), batch["action_B"], ignore_index=-1)
            motion_loss = motion_loss + action_loss
        loss = self.settings.caption_weight * caption_loss + contrastive + self.settings.motion_weight * motion_loss
        kind = "scenes" if (batch["action_B"] >= 0).any() else "photos"
        return LossParts(
            loss_sum=loss * num_clips,
            weight=num_clips,
            logs={
                f"{kind}_caption": caption_loss.detach(),
                f"{kind}_contrastive": contrastive.detach(),
                f"{kind}_motion": motion_loss.detach(),
            },
            num_tokens=int((long_SM != pad).sum()),
            capacity_tokens=long_SM.numel(),
        )

    def validate(self, model: nn.Module, step: int) -> dict[str, float]:
        return {}


def main(
    out: Path,
    work: Path,
    photos: Path | None = None,
    num_steps: int = 3900,
    photo_rounds: int = 2,
    scene_parts: int = 14,
    num_scenes: int = 300,
    num_photos: int = 1000,
) -> None:
    """Train the tiny captioner and export it with its model card.

    Args:
        out: folder for the captioner.
        work: folder for cached features and checkpoints (4 GB); the same command resumes from it.
        photos: folder with flickr8k-train.tar and flickr8k-devtest.tar; without it, scenes alone.
        photo_rounds: clips per photo.
        scene_parts: number of parts of 500 scenes.
        num_scenes: held-out scenes to evaluate on.
        num_photos: held-out photos to evaluate on.
    """
    from model_card import export_tiny, known_clips
    from torch.nn.attention import SDPBackend, sdpa_kernel

    train_photos = read_photos(photos / TRAIN_TAR) if photos else []
    cache = work / "features"
    cache.mkdir(parents=True, exist_ok=True)
    extractor = FrozenFeatureExtractor()
    components = load_components(cache, train_photos, extractor)
    parts = {
        "photos": [Part("photos", i) for i in range(photo_rounds * len(train_photos) // CLIPS_PER_PART)],
        "scenes": [Part("scenes", i) for i in range(scene_parts)],
    }
    for part in tqdm([part for of_source in parts.values() for part in of_source], desc="features", unit="part"):
        write_part(part, train_photos, cache, components, extractor)
    task = TinyTask(TinySettings(), train_photos, cache, parts)
    with sdpa_kernel(SDPBackend.MATH):  # at these sizes the fused kernel's backward takes twice as long on a CPU
        train(task, dataclasses.replace(TRAINER, num_steps=num_steps), str(work / "train"))
    # even photos were used while the recipe was tuned; the card is measured on the odd ones
    held_out = read_photos(photos / TEST_TAR) if photos else []
    test, other = held_out[1::2][:num_photos], held_out[::2][: num_photos // 2]
    known = known_clips(train_photos)
    export_tiny(work / "train", components, out, photos=test, other_photos=other, known=known, num_scenes=num_scenes)


def next_token_logits(decoder: Any, tokens_BND: Tensor, text_BMD: Tensor, mask_BM: Tensor) -> Tensor:
    """The decoder's logits (masked positions, V) at the positions in the mask only: half of a batch is padding, and the
    vocabulary projection is the most expensive layer."""
    length = text_BMD.shape[1]
    for block, cross in zip(decoder.resblocks, decoder.cross_attn, strict=True):
        text_BMD = block(text_BMD, attn_mask=decoder.attn_mask[:length, :length])
        text_BMD = cross(text_BMD, k_x=tokens_BND, v_x=tokens_BND)
    return decoder.ln_final(text_BMD[mask_BM]) @ decoder.text_projection


def encode(model: Any, batch: Mapping[str, Tensor], *, dropout: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(normalised contrastive embeddings, pooled tokens, motion features) of a batch of cached clips."""
    mean, std = PREPROCESSOR.mean[0], PREPROCESSOR.std[0]
    pixels = ((batch["motion_BTHWC"].float() / 255 - mean) / std).movedim(-1, -3)
    pooled_BD, tokens_BND, motion_BD = model.captioner.coca.visual(batch["semantic_BSLC"].float(), pixels, dropout)
    return F.normalize(pooled_BD, dim=-1), tokens_BND, motion_BD


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
