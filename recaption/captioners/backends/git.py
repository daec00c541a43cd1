"""GIT (arXiv 2205.14100), by the transformers package: a causal language model with image tokens as prefix.

    captioner = load_captioner("git:microsoft/git-base-vatex")

The implementation in transformers encodes one frame after another, and each clip once per beam. Here all frames of a batch
are encoded once, together, and the result is passed to its forward pass.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recaption.captioners.backends.hf_generate import generate_completions, reset_generation_config
from recaption.captioners.base import BaseCaptioner, ClipBatch, GenerationOutput
from recaption.captioners.preprocess import uniform_frame_indices
from recaption.captioners.pretrained import check_tokenizer_size, open_config, open_model, open_processor
from recaption.errors import UsageError
from recaption.weights import weights_hash


class GitCaptioner(BaseCaptioner):
    """Captions of a `GitForCausalLM` and its processor."""

    def __init__(self, model: Any, processor: Any, *, spec: str, weights_hash: str, prompt: str) -> None:
        """
        Args:
            prompt: text that every caption continues; not part of the caption.
        """
        config = model.config
        self.model, self.processor = model, processor
        self.name, self.weights_hash = spec, weights_hash
        # one temporal embedding per frame it was trained with; image models have none
        self.num_frames = config.num_image_with_embedding or 1
        self.frame_px = int(config.vision_config.image_size)
        tokenizer = processor.tokenizer
        self._prompt_ids = [
            tokenizer.cls_token_id if tokenizer.cls_token_id is not None else config.bos_token_id,
            *tokenizer(prompt, add_special_tokens=False)["input_ids"],
        ]
        self.max_tokens = config.max_position_embeddings - len(self._prompt_ids)
        if self.max_tokens < 1:
            raise UsageError(
                f"captioner {spec}: a prompt of {len(self._prompt_ids) - 1} tokens leaves no room in its context of "
                f"{config.max_position_embeddings}"
            )
        self._end_ids = reset_generation_config(model) or (tokenizer.sep_token_id,)
        self._encoder = model.git.image_encoder
        model.git.image_encoder = _PrecomputedStates()

    def generate(self, batch: ClipBatch) -> GenerationOutput:
        states = self._encode_frames(batch.clips)
        prompt_BM = torch.tensor([self._prompt_ids] * len(batch.clips), device=states.device)
        completions = generate_completions(
            self.model,
            {"input_ids": prompt_BM, "attention_mask": torch.ones_like(prompt_BM), "pixel_values": states},
            decoding=batch.decoding,
            uniform_BM=batch.uniforms_RM,
            end_ids=self._end_ids,
            pad_id=self.processor.tokenizer.pad_token_id or 0,
        )
        return GenerationOutput(texts=[completion.decode(self.processor.tokenizer) for completion in completions])

    @torch.inference_mode()
    def _encode_frames(self, clips: list[np.ndarray]) -> Tensor:
        """Image tokens of all frames, in the layout in which GIT takes pixels: (B, T, 1, L, D), image models (B, 1, L, D).

        T is always the number of temporal embeddings, short clips repeat frames: GIT's KV cache assumes it.
        """
        chosen = [clip[uniform_frame_indices(len(clip), self.num_frames, repeat=True)] for clip in clips]
        frames = [frame for clip in chosen for frame in clip]
        pixels = self.processor.image_processor(images=frames, return_tensors="pt")["pixel_values"]
        weight = next(self._encoder.parameters())
        states = self._encoder(pixels.to(weight.device, weight.dtype)).last_hidden_state
        states = states.unflatten(0, (len(clips), self.num_frames))[:, :, None]
        return states if self.model.config.num_image_with_embedding else states[:, 0]


class _PrecomputedStates(nn.Module):
    """Replaces GIT's image encoder: returns the states it is given, which were encoded before."""

    def forward(self, states: Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=states[:, 0].clone())  # GIT adds to it in place


def open_git(path_or_id: str, *, device: str, dtype: torch.dtype | None, prompt: str) -> GitCaptioner:
    """Open a GIT model from the hub or a folder; raises as `pretrained.open_config` and `pretrained.open_model`."""
    from transformers import AutoProcessor, GitForCausalLM

    spec = f"git:{path_or_id}"
    open_config(path_or_id, spec=spec, supported="GIT", is_supported=lambda config: config.model_type == "git")
    processor = open_processor(AutoProcessor, path_or_id, spec=spec)
    model = open_model(GitForCausalLM, path_or_id, spec=spec)
    check_tokenizer_size(processor.tokenizer, model.config.vocab_size, spec=spec)
    digest = weights_hash(model.state_dict())
    model = model.to(device=device, dtype=dtype or torch.float32)
    return GitCaptioner(model, processor, spec=spec, weights_hash=digest, prompt=prompt)
