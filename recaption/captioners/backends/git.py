"""GIT (arXiv 2205.14100): a picture or a few frames as prefix of a causal language model, by the transformers package.

    captioner = load_captioner("git:microsoft/git-base-vatex")

GIT as transformers has it encodes one frame after the other, and each clip once per beam. Here all frames of a batch are
encoded together, once, and its forward pass is handed the result.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recaption.captioners.backends.hf_generate import continue_rows, plain_generation
from recaption.captioners.base import Batch, Describing, Told
from recaption.captioners.preprocess import choose_frames
from recaption.captioners.pretrained import check_vocabulary, open_config, open_model, open_processor, weights_hash
from recaption.errors import UsageError


class GitCaptioner(Describing):
    """A `GitForCausalLM` with its processor."""

    def __init__(self, model: Any, processor: Any, *, spec: str, weights_hash: str, prompt: str) -> None:
        """
        Args:
            prompt: words that every caption goes on from; no part of it.
        """
        config = model.config
        self.model, self.processor = model, processor
        self.name, self.weights_hash = spec, weights_hash
        # one temporal embedding per frame that it was trained with; a model of pictures has none
        self.num_frames = config.num_image_with_embedding or 1
        self.frame_px = int(config.vision_config.image_size)
        tokenizer = processor.tokenizer
        self._prompt = [
            tokenizer.cls_token_id if tokenizer.cls_token_id is not None else config.bos_token_id,
            *tokenizer(prompt, add_special_tokens=False)["input_ids"],
        ]
        self.max_tokens = config.max_position_embeddings - len(self._prompt)
        if self.max_tokens < 1:
            raise UsageError(
                f"captioner {spec}: a prompt of {len(self._prompt) - 1} tokens leaves no room in its context of "
                f"{config.max_position_embeddings}"
            )
        self._ends = plain_generation(model) or (tokenizer.sep_token_id,)
        self._encoder = model.git.image_encoder
        model.git.image_encoder = _Encoded()

    def tell(self, batch: Batch) -> Told:
        states = self._encode(batch.clips)
        prompt_BM = torch.tensor([self._prompt] * len(batch.clips), device=states.device)
        continuations = continue_rows(
            self.model,
            {"input_ids": prompt_BM, "attention_mask": torch.ones_like(prompt_BM), "pixel_values": states},
            decoding=batch.decoding,
            draws_BM=batch.draws_RM,
            ends=self._ends,
            pad=self.processor.tokenizer.pad_token_id or 0,
        )
        return Told(said=[one.said(self.processor.tokenizer) for one in continuations])

    @torch.inference_mode()
    def _encode(self, clips: list[np.ndarray]) -> Tensor:
        """States of all frames in the form in which GIT takes pixels: (B, T, 1, L, D), of a model of pictures (B, 1, L, D).

        Always as many frames as there are temporal embeddings, some twice where a clip is short: GIT counts on it in its
        cache.
        """
        chosen = [clip[choose_frames(len(clip), self.num_frames, repeat=True)] for clip in clips]
        frames = [frame for clip in chosen for frame in clip]
        pixels = self.processor.image_processor(images=frames, return_tensors="pt")["pixel_values"]
        weight = next(self._encoder.parameters())
        states = self._encoder(pixels.to(weight.device, weight.dtype)).last_hidden_state
        states = states.unflatten(0, (len(clips), self.num_frames))[:, :, None]
        return states if self.model.config.num_image_with_embedding else states[:, 0]


class _Encoded(nn.Module):
    """Stands where GIT has its image encoder, and hands on what was encoded before."""

    def forward(self, states: Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=states[:, 0].clone())  # GIT adds to it in place


def open_git(place: str, *, device: str, dtype: torch.dtype | None, prompt: str) -> GitCaptioner:
    """Raises as `weights.open_config` and `weights.open_model`."""
    from transformers import AutoProcessor, GitForCausalLM

    spec = f"git:{place}"
    open_config(place, spec=spec, takes="GIT", fits=lambda config: config.model_type == "git")
    processor = open_processor(AutoProcessor, place, spec=spec)
    model = open_model(GitForCausalLM, place, spec=spec)
    check_vocabulary(processor.tokenizer, model.config.vocab_size, spec=spec)
    digest = weights_hash(model)
    model = model.to(device=device, dtype=dtype or torch.float32)
    return GitCaptioner(model, processor, spec=spec, weights_hash=digest, prompt=prompt)
