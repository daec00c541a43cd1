"""FrozenBiLM (arXiv 2206.08155) as a captioner: a frozen bidirectional language model that has learned to look.

Frames go through a frozen CLIP vision transformer and one linear layer and stand before the words; small adapters after
the attention and feed-forward layers, and the layer norms, are all else that is trained. The paper answers questions, one
mask at a time. Captions are filled in here as mask-predict does (arXiv 1904.09324): all words at once, then the least
certain again, in a fixed number of rounds, for several lengths, of which the most probable caption wins.

    model = FrozenBiLM(config)
    model.loss(lesson(pixels_BTCHW, ["A red circle."], words), words)         # gradients in trainable parameters alone
    model.fill(pixels_BTCHW, words, lengths=[6, 8, 12])

Shapes: B clips, T frames, M words, K lengths, R = B*K rows (the lengths of a clip are neighbours), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recaption.captioners.backends.checkpoint_folder import Lesson, Words

FORMAT = "frozenbilm-1"


NUM_ROUNDS = 10
"""Mask-predict's own choice: more gain nothing for texts of some 20 words."""


ADAPTER_STD = 1e-3
"""Adapters start as almost nothing, so that the language model starts as itself."""


class Adapter(nn.Module):
    """A bottleneck beside a layer's output."""

    def __init__(self, width: int, divisor: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // divisor), nn.Linear(width // divisor, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=ADAPTER_STD, a=-2 * ADAPTER_STD, b=2 * ADAPTER_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.down(x)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    tokens: tuple[int, ...]
    mean_logprob: float


class FrozenBiLM(nn.Module):
    """
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
        self.prefix = nn.Linear(vision.projection_dim, self.words_in.embedding_dim)
        for layer in self.language.deberta.encoder.layer:
            for place in (layer.attention.output, layer.output):
                place.dense = nn.Sequential(place.dense, Adapter(language.hidden_size, config["adapter_divisor"]))
        self.requires_grad_(False)
        for parameter in self.trainable():
            parameter.requires_grad_(True)

    @property
    def words_in(self) -> nn.Embedding:
        return self.language.deberta.embeddings.word_embeddings

    def trainable(self) -> Iterator[nn.Parameter]:
        """The linear layer, the adapters and the language model's layer norms."""
        yield from self.prefix.parameters()
        for module in self.language.modules():
            if isinstance(module, (Adapter, nn.LayerNorm)):
                yield from module.parameters()

    def see(self, pixels_BTCHW: Tensor) -> Tensor:
        """One vector per frame, where words are: (B, T, D)."""
        with torch.no_grad():
            frames = self.vision(pixel_values=pixels_BTCHW.flatten(0, 1)).image_embeds
        return self.prefix(frames.unflatten(0, pixels_BTCHW.shape[:2]))

    def logits(self, seen_BTD: Tensor, ids_BM: Tensor, present_BM: Tensor) -> Tensor:
        """Logits (B, M, V) of each word, from all frames and all words."""
        inputs = torch.cat([seen_BTD, self.words_in(ids_BM)], dim=1)
        mask = torch.cat([torch.ones_like(seen_BTD[..., 0]), present_BM.to(seen_BTD.dtype)], dim=1)
        return self.language(inputs_embeds=inputs, attention_mask=mask).logits[:, seen_BTD.shape[1] :]

    def loss(self, batch: Lesson, words: Words, *, generator: torch.Generator | None = None) -> Tensor:
        """Cross-entropy of masked words: of each caption a share drawn from 0..1, one word at least.

        Filling in starts from nothing but masks and ends with few, so all shares have to be practised.
        """
        num_clips, longest = batch.ids_BM.shape
        is_word_BM = torch.arange(longest) < batch.lengths_B[:, None]
        share_B1 = torch.rand(num_clips, 1, generator=generator)
        noise_BM = torch.rand(num_clips, longest, generator=generator).masked_fill(~is_word_BM, 2.0)
        is_masked_BM = ((noise_BM < share_B1) | (noise_BM == noise_BM.amin(1, keepdim=True))) & is_word_BM
        device = batch.pixels_BTCHW.device
        ids_BM = batch.ids_BM.masked_fill(is_masked_BM, words.mask)
        ids, present = _framed(ids_BM, batch.lengths_B, words)
        logits_BMV = self.logits(self.see(batch.pixels_BTCHW), ids.to(device), present.to(device))[:, 1:-1]
        return F.cross_entropy(logits_BMV[is_masked_BM.to(device)], batch.ids_BM[is_masked_BM].to(device))

    @torch.inference_mode()
    def fill(
        self,
        pixels_BTCHW: Tensor,
        words: Words,
        *,
        lengths: Sequence[int],
        num_rounds: int = NUM_ROUNDS,
        temperature: float = 0.0,
        draws_BRM: np.ndarray | None = None,
    ) -> list[Filled]:
        """One caption per clip: the most probable one of `lengths`.

        Args:
            draws_BRM: with a temperature, uniform numbers: per clip, round and word.
        """
        num_clips, num_lengths = len(pixels_BTCHW), len(lengths)
        lengths_R = torch.tensor(list(lengths)).repeat(num_clips)
        longest = int(lengths_R.max())
        seen_RTD = self.see(pixels_BTCHW).repeat_interleave(num_lengths, dim=0)
        is_word_RM = torch.arange(longest) < lengths_R[:, None]
        ids_RM = torch.full((num_clips * num_lengths, longest), words.pad).masked_fill(is_word_RM, words.mask)
        logprob_RM = torch.zeros(ids_RM.shape)
        is_open_RM = is_word_RM
        for number in range(num_rounds):
            ids, present = _framed(ids_RM, lengths_R, words)
            logits_RMV = self.logits(seen_RTD, ids.to(seen_RTD.device), present.to(seen_RTD.device))[:, 1:-1]
            logits_RMV = logits_RMV.float().cpu()
            logits_RMV[..., [words.start, words.end, words.pad, words.mask]] = -torch.inf
            all_RMV = logits_RMV.log_softmax(dim=-1)
            if temperature > 0 and draws_BRM is not None:
                uniform = torch.as_tensor(draws_BRM[:, number, :longest], dtype=torch.float32)
                chosen_RM = _drawn(logits_RMV / temperature, uniform.repeat_interleave(num_lengths, dim=0))
            else:
                chosen_RM = all_RMV.argmax(dim=-1)
            said_RM = all_RMV.gather(2, chosen_RM[..., None])[..., 0]
            ids_RM = torch.where(is_open_RM, chosen_RM, ids_RM)
            logprob_RM = torch.where(is_open_RM, said_RM, logprob_RM)
            if number + 1 < num_rounds:
                left = 1 - (number + 1) / num_rounds
                is_open_RM = _least_certain(logprob_RM, is_word_RM, (lengths_R * left).long())
                if not is_open_RM.any():
                    break
                ids_RM = ids_RM.masked_fill(is_open_RM, words.mask)
        means = ((logprob_RM * is_word_RM).sum(1) / lengths_R).view(num_clips, num_lengths)
        best = means.argmax(dim=1) + torch.arange(num_clips) * num_lengths
        return [
            Filled(tokens=tuple(ids_RM[row, : lengths_R[row]].tolist()), mean_logprob=float(means.flatten()[row]))
            for row in best.tolist()
        ]


def _framed(ids_BM: Tensor, lengths_B: Tensor, words: Words) -> tuple[Tensor, Tensor]:
    """Words between start and end token, and which positions are there: both (B, M + 2)."""
    num_rows = len(ids_BM)
    framed = F.pad(ids_BM, (1, 1), value=words.pad)
    framed[:, 0] = words.start
    framed[torch.arange(num_rows), lengths_B + 1] = words.end
    return framed, torch.arange(framed.shape[1]) < lengths_B[:, None] + 2


def _least_certain(logprob_RM: Tensor, is_word_RM: Tensor, counts_R: Tensor) -> Tensor:
    """The `counts_R` least probable words of each row."""
    rank_RM = logprob_RM.masked_fill(~is_word_RM, torch.inf).argsort(dim=1).argsort(dim=1)
    return (rank_RM < counts_R[:, None]) & is_word_RM


def _drawn(logits_RMV: Tensor, uniform_RM: Tensor) -> Tensor:
    """One token per place by inverse transform."""
    sums = logits_RMV.softmax(dim=-1).cumsum(dim=-1)
    places = torch.searchsorted(sums, (uniform_RM * sums[..., -1])[..., None].contiguous(), right=True)
    return places[..., 0].clamp(max=logits_RMV.shape[-1] - 1)
