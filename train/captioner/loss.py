"""CoCa's loss (arXiv 2205.01917): contrastive + captioning, over all ranks, optionally in micro-batches (GradCache).

The contrastive loss compares the clips and texts of all ranks; gradients flow back to the rank of each embedding. With
`micro_batch`, clips are encoded a few at a time, keeping only their embeddings, and encoded again in the backward pass
(GradCache, arXiv 2101.06983, by torch's activation checkpointing): the gradient equals that of one pass, activations and
logits are those of one micro-batch, at the cost of one more forward.

Shapes: B clips of this rank, R = B times ranks, S texts, M tokens, K positives per clip, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.videococa.model import VideoCoCa
from train.parallel.collectives import gather, gather_with_gradient, sum_over_ranks

MAX_LOGIT_SCALE = 100.0
"""Upper bound of the inverse contrastive temperature, as in CLIP."""
_IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionerLoss:
    total: Tensor
    """Sum over this rank's clips. Summed over ranks and divided by the number of clips: `caption_weight` times the mean
    cross-entropy per token + `contrastive_weight` times the contrastive loss per clip."""
    caption: Tensor
    """Mean cross-entropy per token of this rank, detached."""
    contrastive: Tensor
    """Mean contrastive loss of this rank's clips, detached."""


def captioner_loss(
    model: VideoCoCa,
    batch: Mapping[str, Any],
    preprocessor: FramePreprocessor,
    *,
    pad: int,
    caption_weight: float,
    contrastive_weight: float,
    micro_batch: int = 0,
) -> CaptionerLoss:
    """Loss of one batch of this rank; collective over all ranks.

    Args:
        batch: from `CaptionBatches` (batches.py), on the model's device; `with_micro_batches` before it is moved there
            saves the step from waiting for the device.
        micro_batch: clips encoded at a time; 0 = all at once, without a second forward.
    """
    num_clips = len(batch["pixels_BTHWC"])
    size = micro_batch or num_clips
    batch = batch if "micro_batches" in batch else with_micro_batches(batch, micro_batch)
    encoded = []
    for start, texts in zip(range(0, num_clips, size), batch["micro_batches"], strict=True):
        clip_batch = _select(batch, slice(start, start + size), texts)
        if size >= num_clips:
            encoded.append(_encode(model, preprocessor, pad, clip_batch))
        else:
            encoded.append(checkpoint(_encode, model, preprocessor, pad, clip_batch, use_reentrant=False))
    clips_BD = torch.cat([clips for clips, _, _ in encoded])
    texts_KBD = torch.cat([texts for _, texts, _ in encoded], dim=1)
    caption_sum = torch.stack([total for _, _, total in encoded]).sum()

    num_tokens = batch["counts"]
    all_tokens, all_clips = sum_over_ranks(num_tokens.clone())
    scale = model.coca.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
    contrastive_sum = contrastive_loss(clips_BD, texts_KBD, batch["text_hash_KB"], scale)
    per_clip = (all_clips / all_tokens).float()
    return CaptionerLoss(
        total=caption_weight * caption_sum * per_clip + contrastive_weight * contrastive_sum,
        caption=(caption_sum / num_tokens[0]).detach().float(),
        contrastive=(contrastive_sum / num_clips).detach(),
    )


def with_micro_batches(batch: Mapping[str, Any], micro_batch: int) -> dict[str, Any]:
    """The batch with the texts of each micro-batch and its counts: on the CPU, before the batch is moved.

    Args:
        micro_batch: clips of one; 0 = the whole batch is one.
    """
    caption_index_B, positive_index_KB = batch["caption_index_B"], batch["positive_index_KB"]
    num_clips = len(caption_index_B)
    size = micro_batch or num_clips
    micro_batches: list[dict[str, Tensor]] = []
    for start in range(0, num_clips, size):
        captions, positives = caption_index_B[start : start + size], positive_index_KB[:, start : start + size]
        if size >= num_clips:
            micro_batches.append({"caption_index_B": captions, "positive_index_KB": positives})
            continue
        used_S, indices = torch.cat([captions, positives.flatten()]).unique(return_inverse=True)
        micro_batches.append(
            {
                "used_S": used_S,
                "caption_index_B": indices[: len(captions)],
                "positive_index_KB": indices[len(captions) :].view_as(positives),
            }
        )
    counts = torch.tensor([batch["num_tokens"], num_clips], dtype=torch.float64, device=caption_index_B.device)
    return {**batch, "micro_batches": micro_batches, "counts": counts}


def _select(batch: Mapping[str, Any], clips: slice, texts: Mapping[str, Tensor]) -> dict[str, Any]:
    """A micro-batch: some clips with only the texts they use."""
    return {
        "pixels_BTHWC": batch["pixels_BTHWC"][clips],
        "texts_SM": batch["texts_SM"][texts["used_S"]] if "used_S" in texts else batch["texts_SM"],
        "caption_index_B": texts["caption_index_B"],
        "positive_index_KB": texts["positive_index_KB"],
        "prefix_B": batch["prefix_B"][clips],
        "longest": batch["longest"],
        "longest_text": batch.get("longest_text"),
    }


def _encode(
    model: VideoCoCa, preprocessor: FramePreprocessor, pad: int, clip_batch: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """(clips_BD, texts_KBD, summed cross-entropy of the captions), float32; embeddings have unit length."""
    clips = model.encode_clips(preprocessor.normalise(clip_batch["pixels_BTHWC"]))
    texts = model.encode_texts(clip_batch["texts_SM"], longest=clip_batch["longest_text"])
    longest = clip_batch["longest"]
    caption_ids_BM = clip_batch["texts_SM"][clip_batch["caption_index_B"], :longest]
    logits_BMV = model.caption_logits(clips.tokens_BND, texts.tokens_SMD[clip_batch["caption_index_B"], : longest - 1])
    targets_BM = caption_ids_BM[:, 1:]
    position_M = torch.arange(longest - 1, device=targets_BM.device)
    # the prefix is a prompt, not a target
    ignored_BM = (targets_BM == pad) | (position_M < clip_batch["prefix_B"][:, None])
    caption_sum = F.cross_entropy(
        logits_BMV.flatten(0, 1).float(),
        targets_BM.masked_fill(ignored_BM, _IGNORE_INDEX).flatten(),
        ignore_index=_IGNORE_INDEX,
        reduction="sum",
    )
    texts_SD = F.normalize(texts.pooled_SD.float(), dim=-1)
    return clips.pooled_BD.float(), texts_SD[clip_batch["positive_index_KB"]], caption_sum


def contrastive_loss(clips_BD: Tensor, texts_KBD: Tensor, text_hash_KB: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of this rank's clips and texts against all ranks', summed over clips, mean over K.

    Equal texts (same hash) count as positives of each other.
    """
    num_positives = len(text_hash_KB)
    vectors_BLD = torch.cat([clips_BD[:, None], texts_KBD.transpose(0, 1)], dim=1)
    all_vectors_RLD = gather_with_gradient(vectors_BLD)
    all_text_hash_RK = gather(text_hash_KB.T.contiguous())
    total = clips_BD.new_zeros(())
    for k in range(num_positives):
        same_BR = (text_hash_KB[k][:, None] == all_text_hash_RK[:, k][None, :]).float()
        targets_BR = same_BR / same_BR.sum(dim=1, keepdim=True)
        to_texts_BR = scale * clips_BD @ all_vectors_RLD[:, 1 + k].T
        to_clips_BR = scale * texts_KBD[k] @ all_vectors_RLD[:, 0].T
        for logits_BR in (to_texts_BR, to_clips_BR):
            total = total + F.cross_entropy(logits_BR, targets_BR, reduction="sum") / (2 * num_positives)
    return total
