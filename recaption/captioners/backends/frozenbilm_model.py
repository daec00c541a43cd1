"""FrozenBiLM (arXiv 2206.08155) as a captioner: a frozen bidirectional language model with a visual prefix.

Experimental: never run with published weights.

Frames go through a frozen CLIP vision transformer and one linear layer, and are prepended to the text tokens. Trained are
that linear layer, small adapters after the attention and feed-forward layers, and the layer norms. The paper answers
questions, one mask at a time. Captions are decoded here by mask-predict (arXiv 1904.09324): all tokens at once, then the
least probable ones again, for a fixed number of iterations and several lengths; the most probable length wins.

    model = FrozenBiLM(config)
    model.loss(collate(pixels_BTCHW, ["A red circle."], tokenizer), tokenizer)      # reaches trainable parameters only
    model.mask_predict(pixels_BTCHW, tokenizer, lengths=[6, 8, 12])

Shapes: B clips, T frames, M tokens, I iterations, K lengths, R = B*K candidates (those of a clip are consecutive),
D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.captioners.backends.checkpoint_folder import Tokenizer, TrainingBatch

FORMAT = "frozenbilm-1"
NUM_ITERATIONS = 10
"""As in the mask-predict paper: more gain nothing for texts of some 20 words."""
ADAPTER_STD = 1e-3
"""Adapters start close to zero, so that training starts from the unchanged language model."""


class Adapter(nn.Module):
    """A residual bottleneck: linear down, ReLU, linear up, added to its input."""

    def __init__(self, width: int, divisor: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // divisor), nn.Linear(width // divisor, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=ADAPTER_STD, a=-2 * ADAPTER_STD, b=2 * ADAPTER_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.down(x)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The most probable caption of one clip."""

    tokens: tuple[int, ...]
    mean_logprob: float


class FrozenBiLM(nn.Module):
    """A frozen CLIP vision transformer and a frozen DeBERTa-v2 with adapters.

    Args:
        config: `language` (a DebertaV2Config as dict), `vision` (a CLIPVisionConfig as dict), `adapter_divisor`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, DebertaV2Config, DebertaV2ForMaskedLM

        language = DebertaV2Config(**config["language"])
        language.legacy = False  # the head that DeBERTa was trained with
        vision = CLIPVisionConfig(**config["vision"])
        self.vision: Any = CLIPVisionModelWithProjection(vision)
        self.language: Any = DebertaV2ForMaskedLM(language)
        self.prefix = nn.Linear(vision.projection_dim, self.token_embedding.embedding_dim)
        for layer in self.language.deberta.encoder.layer:
            for output in (layer.attention.output, layer.output):
                output.dense = nn.Sequential(output.dense, Adapter(language.hidden_size, config["adapter_divisor"]))
        self.requires_grad_(False)
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.language.deberta.embeddings.word_embeddings

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The linear layer, the adapters and the language model's layer norms."""
        yield from self.prefix.parameters()
        for module in self.language.modules():
            if isinstance(module, (Adapter, nn.LayerNorm)):
                yield from module.parameters()

    def encode_frames(self, pixels_BTCHW: Tensor) -> Tensor:
        """The visual prefix: one token embedding per frame, (B, T, D)."""
        with torch.no_grad():
            frames = self.vision(pixel_values=pixels_BTCHW.flatten(0, 1)).image_embeds
        return self.prefix(frames.unflatten(0, pixels_BTCHW.shape[:2]))

    def logits(self, frames_BTD: Tensor, token_ids_BM: Tensor, mask_BM: Tensor) -> Tensor:
        """Logits (B, M, V) of each token, which attends to all frames and all tokens where `mask_BM` is true."""
        inputs = torch.cat([frames_BTD, self.token_embedding(token_ids_BM)], dim=1)
        mask = torch.cat([torch.ones_like(frames_BTD[..., 0]), mask_BM.to(frames_BTD.dtype)], dim=1)
        return self.language(inputs_embeds=inputs, attention_mask=mask).logits[:, frames_BTD.shape[1] :]

    def loss(self, batch: TrainingBatch, tokenizer: Tokenizer, *, generator: torch.Generator | None = None) -> Tensor:
        """Masked-token cross-entropy; each caption's mask rate is uniform in 0..1, at least one token is masked.

        Mask-predict starts with everything masked and ends with few masks, so all mask rates are trained.
        """
        num_clips, longest = batch.token_ids_BM.shape
        is_token_BM = torch.arange(longest) < batch.lengths_B[:, None]
        mask_rate_B1 = torch.rand(num_clips, 1, generator=generator)
        noise_BM = torch.rand(num_clips, longest, generator=generator).masked_fill(~is_token_BM, 2.0)
        is_masked_BM = ((noise_BM < mask_rate_B1) | (noise_BM == noise_BM.amin(1, keepdim=True))) & is_token_BM
        device = batch.pixels_BTCHW.device
        token_ids_BM = batch.token_ids_BM.masked_fill(is_masked_BM, tokenizer.mask_id)
        token_ids, mask = _add_special_tokens(token_ids_BM, batch.lengths_B, tokenizer)
        frames_BTD = self.encode_frames(batch.pixels_BTCHW)
        logits_BMV = self.logits(frames_BTD, token_ids.to(device), mask.to(device))[:, 1:-1]
        return F.cross_entropy(logits_BMV[is_masked_BM.to(device)], batch.token_ids_BM[is_masked_BM].to(device))

    @torch.inference_mode()
    def mask_predict(
        self,
        pixels_BTCHW: Tensor,
        tokenizer: Tokenizer,
        *,
        lengths: Sequence[int],
        num_iterations: int = NUM_ITERATIONS,
        temperature: float = 0.0,
        uniform_BIM: np.ndarray | None = None,
    ) -> list[Prediction]:
        """One caption per clip: the most probable one over all `lengths`.

        Args:
            lengths: in tokens.
            uniform_BIM: uniform random numbers per clip, iteration and token; used where `temperature` is above 0.
        """
        num_clips, num_lengths = len(pixels_BTCHW), len(lengths)
        lengths_R = torch.tensor(list(lengths)).repeat(num_clips)
        longest = int(lengths_R.max())
        frames_RTD = self.encode_frames(pixels_BTCHW).repeat_interleave(num_lengths, dim=0)
        is_token_RM = torch.arange(longest) < lengths_R[:, None]
        token_ids_RM = torch.full((num_clips * num_lengths, longest), tokenizer.pad_id)
        token_ids_RM = token_ids_RM.masked_fill(is_token_RM, tokenizer.mask_id)
        logprob_RM = torch.zeros(token_ids_RM.shape)
        is_masked_RM = is_token_RM
        device = frames_RTD.device
        special_ids = torch.tensor(tokenizer.special_ids, device=device)
        uniform_RIM = None
        if temperature > 0 and uniform_BIM is not None:
            uniform_BIM = uniform_BIM[:, :num_iterations, :longest]
            uniform_RIM = torch.as_tensor(uniform_BIM, dtype=torch.float32, device=device)
            uniform_RIM = uniform_RIM.repeat_interleave(num_lengths, dim=0)
        for iteration in range(num_iterations):
            token_ids, mask = _add_special_tokens(token_ids_RM, lengths_R, tokenizer)
            logits_RMV = self.logits(frames_RTD, token_ids.to(device), mask.to(device))[:, 1:-1].float()
            logits_RMV = logits_RMV.index_fill(-1, special_ids, -torch.inf)
            logprob_RMV = logits_RMV.log_softmax(
                dim=-1
            )  # on the device: 650 MB for 16 clips and the vocabulary of DeBERTa
            if uniform_RIM is not None:
                chosen_RM = _sample(logits_RMV / temperature, uniform_RIM[:, iteration])
            else:
                chosen_RM = logprob_RMV.argmax(dim=-1)
            chosen_logprob_RM = logprob_RMV.gather(2, chosen_RM[..., None])[..., 0]
            # one small transfer per iteration: token ids are exact in float64
            chosen_RM, chosen_logprob_RM = torch.stack([chosen_RM.double(), chosen_logprob_RM.double()]).cpu()
            chosen_RM, chosen_logprob_RM = chosen_RM.long(), chosen_logprob_RM.float()
            token_ids_RM = torch.where(is_masked_RM, chosen_RM, token_ids_RM)
            logprob_RM = torch.where(is_masked_RM, chosen_logprob_RM, logprob_RM)
            if iteration + 1 < num_iterations:
                mask_rate = 1 - (iteration + 1) / num_iterations
                is_masked_RM = _least_probable(logprob_RM, is_token_RM, (lengths_R * mask_rate).long())
                if not is_masked_RM.any():
                    break
                token_ids_RM = token_ids_RM.masked_fill(is_masked_RM, tokenizer.mask_id)
        means = ((logprob_RM * is_token_RM).sum(1) / lengths_R).view(num_clips, num_lengths)
        best = means.argmax(dim=1) + torch.arange(num_clips) * num_lengths
        return [
            Prediction(
                tokens=tuple(token_ids_RM[index, : lengths_R[index]].tolist()),
                mean_logprob=float(means.flatten()[index]),
            )
            for index in best.tolist()
        ]


def _add_special_tokens(token_ids_BM: Tensor, lengths_B: Tensor, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Token ids between start and end token, and the attention mask of the padded result: both (B, M + 2)."""
    padded = F.pad(token_ids_BM, (1, 1), value=tokenizer.pad_id)
    padded[:, 0] = tokenizer.start_id
    padded[torch.arange(len(padded)), lengths_B + 1] = tokenizer.end_id
    return padded, torch.arange(padded.shape[1]) < lengths_B[:, None] + 2


def _least_probable(logprob_RM: Tensor, is_token_RM: Tensor, counts_R: Tensor) -> Tensor:
    """Boolean mask (R, M) of the `counts_R` least probable tokens of each candidate."""
    rank_RM = logprob_RM.masked_fill(~is_token_RM, torch.inf).argsort(dim=1).argsort(dim=1)
    return (rank_RM < counts_R[:, None]) & is_token_RM


def _sample(logits_RMV: Tensor, uniform_RM: Tensor) -> Tensor:
    """Token ids (R, M) by inverse transform sampling."""
    cdf_RMV = logits_RMV.softmax(dim=-1).cumsum(dim=-1)
    ids_RM1 = torch.searchsorted(cdf_RMV, (uniform_RM * cdf_RMV[..., -1])[..., None].contiguous(), right=True)
    return ids_RM1[..., 0].clamp(max=logits_RMV.shape[-1] - 1)
