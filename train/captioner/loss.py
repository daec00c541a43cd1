"""CoCa's loss (arXiv 2205.01917): contrastive + captioning, over all ranks, in as little memory as wished.

Every clip is compared with the texts of all ranks, every text with all clips; gradients flow back to the rank that a
vector came from. With `micro_batch` the clips are encoded a few at a time without keeping anything but their vectors, and
encoded again when the gradient comes back (GradCache, arXiv 2101.06983, by way of torch's checkpointing): the gradient is
that of one pass, activations and logits are those of one micro-batch, and a pass costs one more forward.

Shapes: B clips of this rank, R = B times ranks, S texts, M tokens, K texts that mean a clip, D width, V vocabulary.
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
"""Upper bound of the contrastive temperature's inverse, as in CLIP."""


_IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionerLoss:
    total: Tensor
    """Sum over this rank's clips; summed over ranks and divided by all clips it is `caption_weight` times the mean
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
    """
    Args:
        batch: of `caption_batches.CaptionBatches`, on the model's device.
        micro_batch: clips encoded at a time; 0 = all at once, nothing encoded twice.
    """
    num_clips = len(batch["pixels_BTHWC"])
    size = micro_batch or num_clips
    parts = []
    for start in range(0, num_clips, size):
        part = _part_of(batch, slice(start, start + size))
        if size >= num_clips:
            parts.append(_encode(model, preprocessor, pad, part))
        else:
            parts.append(checkpoint(_encode, model, preprocessor, pad, part, use_reentrant=False))
    clips_BD = torch.cat([clips for clips, _, _ in parts])
    texts_KBD = torch.cat([texts for _, texts, _ in parts], dim=1)
    caption_sum = torch.stack([total for _, _, total in parts]).sum()

    num_tokens = torch.tensor([batch["num_tokens"], num_clips], dtype=torch.float64, device=clips_BD.device)
    all_tokens, all_clips = sum_over_ranks(num_tokens.clone())
    scale = model.coca.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
    contrastive_sum = contrastive(clips_BD, texts_KBD, batch["keys_KB"], scale)
    per_clip = (all_clips / all_tokens).float()
    return CaptionerLoss(
        total=caption_weight * caption_sum * per_clip + contrastive_weight * contrastive_sum,
        caption=(caption_sum / num_tokens[0]).detach().float(),
        contrastive=(contrastive_sum / num_clips).detach(),
    )


def _part_of(batch: Mapping[str, Any], rows: slice) -> dict[str, Tensor]:
    """Some clips of a batch with only the texts that they use."""
    said_B, meant_KB = batch["said_B"][rows], batch["meant_KB"][:, rows]
    if len(said_B) == len(batch["said_B"]):
        texts_SM = batch["texts_SM"]
    else:
        used_S, places = torch.cat([said_B, meant_KB.flatten()]).unique(return_inverse=True)
        texts_SM = batch["texts_SM"][used_S]
        said_B, meant_KB = places[: len(said_B)], places[len(said_B) :].view_as(meant_KB)
    return {
        "pixels_BTHWC": batch["pixels_BTHWC"][rows],
        "texts_SM": texts_SM,
        "said_B": said_B,
        "meant_KB": meant_KB,
        "prefix_B": batch["prefix_B"][rows],
        "longest": batch["longest"],
    }


def _encode(
    model: VideoCoCa, preprocessor: FramePreprocessor, pad: int, part: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """(clips_BD, texts_KBD, summed cross-entropy of the captions): vectors of unit length, all float32."""
    clips = model.encode_clips(preprocessor.normalise(part["pixels_BTHWC"]))
    texts = model.encode_texts(part["texts_SM"])
    longest = part["longest"]
    said_BM = part["texts_SM"][part["said_B"], :longest]
    logits_BMV = model.caption_logits(clips.tokens_BND, texts.tokens_SMD[part["said_B"], : longest - 1])
    targets_BM = said_BM[:, 1:]
    place_M = torch.arange(longest - 1, device=targets_BM.device)
    # a prefix is forced on the captioner, so it is not to be learned
    ignored_BM = (targets_BM == pad) | (place_M < part["prefix_B"][:, None])
    caption_sum = F.cross_entropy(
        logits_BMV.flatten(0, 1).float(),
        targets_BM.masked_fill(ignored_BM, _IGNORED).flatten(),
        ignore_index=_IGNORED,
        reduction="sum",
    )
    texts_SD = F.normalize(texts.pooled_SD.float(), dim=-1)
    return clips.pooled_BD.float(), texts_SD[part["meant_KB"]], caption_sum


def contrastive(clips_BD: Tensor, texts_KBD: Tensor, keys_KB: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of this rank's clips and texts against those of all ranks, summed over clips.

    Clips whose texts are the same words (same key) count as each other's match. Mean over K.
    """
    num_texts = len(keys_KB)
    vectors_BLD = torch.cat([clips_BD[:, None], texts_KBD.transpose(0, 1)], dim=1)
    everybody_RLD = gather_with_gradient(vectors_BLD)
    all_keys_RK = gather(keys_KB.T.contiguous())
    total = clips_BD.new_zeros(())
    for k in range(num_texts):
        same_BR = (keys_KB[k][:, None] == all_keys_RK[:, k][None, :]).float()
        targets_BR = same_BR / same_BR.sum(dim=1, keepdim=True)
        to_texts_BR = scale * clips_BD @ everybody_RLD[:, 1 + k].T
        to_clips_BR = scale * texts_KBD[k] @ everybody_RLD[:, 0].T
        for logits_BR in (to_texts_BR, to_clips_BR):
            total = total + F.cross_entropy(logits_BR, targets_BR, reduction="sum") / (2 * num_texts)
    return total
