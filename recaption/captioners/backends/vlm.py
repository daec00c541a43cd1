"""Any image-text-to-text model of transformers as captioner: Qwen2.5-VL, SmolVLM, LLaVA-OneVision, InternVL ...

    captioner = load_captioner("vlm:Qwen/Qwen2.5-VL-7B-Instruct", device="cuda", prompt="What happens here?")

A clip is passed as a video where the model's processor takes videos, else as images, in the model's own chat template.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from recaption.captioners.backends.hf_generate import Completion, generate_completions, reset_generation_config
from recaption.captioners.backends.instructions import INSTRUCTIONS, instruction_for
from recaption.captioners.base import BaseCaptioner, ClipBatch, GenerationOutput
from recaption.captioners.preprocess import uniform_frame_indices
from recaption.captioners.pretrained import check_tokenizer_size, open_config, open_model, open_processor
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.weights import weights_hash

NUM_FRAMES = 8
"""Default number of frames per clip."""
FRAME_PX = 448
"""Shorter side at which frames are decoded; the model's processor rescales them."""
MAX_TOKENS = 512
FRAMES_PER_SECOND = 2.0
"""Frame rate in the video metadata, for models that insert timestamps between frames: frames carry no times here."""
IMAGE_TOKEN_NAMES = ("image_token_id", "image_token_index")


class VlmCaptioner(BaseCaptioner):
    """Captions of a model with a chat template, and its processor."""

    kinds = tuple(INSTRUCTIONS)

    def __init__(
        self, model: Any, processor: Any, *, spec: str, weights_hash: str, prompt: str = "", num_frames: int = 0
    ) -> None:
        self.model, self.processor, self.prompt = model, processor, prompt
        self.name, self.weights_hash = spec, weights_hash
        self.num_frames, self.frame_px, self.max_tokens = num_frames or NUM_FRAMES, FRAME_PX, MAX_TOKENS
        self.takes_videos = getattr(processor, "video_processor", None) is not None
        self.context_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        self._end_ids = reset_generation_config(model) or (tokenizer.eos_token_id,)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._end_ids[0]
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self._pad_id

    def generate(self, batch: ClipBatch) -> GenerationOutput:
        chosen = [clip[uniform_frame_indices(len(clip), self.num_frames, repeat=False)] for clip in batch.clips]
        indices_by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, clip in enumerate(chosen):
            indices_by_shape[clip.shape].append(index)  # not all processors take clips of several sizes at once
        instruction = instruction_for(batch.kind, self.prompt)
        uniform_BM = batch.uniforms_RM
        completions: dict[int, Completion] = {}
        for indices in indices_by_shape.values():
            inputs = self._inputs([chosen[index] for index in indices], instruction, batch.decoding.max_tokens)
            generated = generate_completions(
                self.model,
                inputs,
                decoding=batch.decoding,
                uniform_BM=uniform_BM[indices],
                end_ids=self._end_ids,
                pad_id=self._pad_id,
            )
            completions |= zip(indices, generated, strict=True)
        return GenerationOutput(
            texts=[completions[index].decode(self.processor.tokenizer) for index in range(len(chosen))]
        )

    def _inputs(self, clips: list[np.ndarray], instruction: str, max_tokens: int) -> Any:
        """Model inputs for clips of one shape, on the model's device and in its dtype.

        Raises:
            UsageError: frames and instruction do not fit the context.
        """
        num_frames = len(clips[0])
        media = [{"type": "video"}] if self.takes_videos else [{"type": "image"}] * num_frames
        message = {"role": "user", "content": [*media, {"type": "text", "text": instruction}]}
        prompt = self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        pixels: dict[str, Any] = {"images": [list(clip) for clip in clips]}
        if self.takes_videos:
            metadata = {
                "total_num_frames": num_frames,
                "fps": FRAMES_PER_SECOND,
                "duration": num_frames / FRAMES_PER_SECOND,
                "frames_indices": list(range(num_frames)),
            }
            # channels first: otherwise a clip 3 px high could be mistaken for one with channels first
            pixels = {
                "videos": [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips],
                "videos_kwargs": {"do_sample_frames": False, "video_metadata": [metadata] * len(clips)},
            }
        inputs = self.processor(text=[prompt] * len(clips), padding=True, return_tensors="pt", **pixels)
        length = inputs["input_ids"].shape[1]
        if self.context_tokens and length + max_tokens > self.context_tokens:
            raise UsageError(
                f"captioner {self.name}: {num_frames} frames and the instruction are {length} tokens, {max_tokens} more are "
                f"to be generated, and its context has {self.context_tokens}; use --caption.num-frames or a shorter prompt"
            )
        return inputs.to(self.model.device, self.model.dtype)


def open_vlm(path_or_id: str, *, device: str, dtype: torch.dtype | None, prompt: str, num_frames: int) -> VlmCaptioner:
    """Open a model from the hub or a folder.

    Raises:
        UsageError: the model has no chat template; otherwise as `pretrained.open_config` and `pretrained.open_model`.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    spec = f"vlm:{path_or_id}"
    supported = AutoModelForImageTextToText._model_mapping
    takes = "models for image-text-to-text, such as qwen2_5_vl, qwen3_vl, smolvlm, llava_onevision, internvl"
    config = open_config(path_or_id, spec=spec, supported=takes, is_supported=lambda config: type(config) in supported)
    processor = open_processor(AutoProcessor, path_or_id, spec=spec)
    if not getattr(processor, "chat_template", None):
        raise UsageError(f"captioner {spec}: it has no chat template; use its instruct or chat variant")
    model = open_model(AutoModelForImageTextToText, path_or_id, spec=spec)
    check_tokenizer_size(processor.tokenizer, model.get_input_embeddings().num_embeddings, spec=spec)
    expected = next((getattr(config, name) for name in IMAGE_TOKEN_NAMES if hasattr(config, name)), None)
    found = getattr(processor, "image_token_id", expected)
    if expected is not None and found != expected:
        raise CheckpointMismatchError(
            f"captioner {spec}: the image token is {found} in its tokenizer, {expected} in its model: they do not belong "
            "together"
        )
    digest = weights_hash(model.state_dict())
    if dtype is None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    model = model.to(device=device, dtype=dtype)
    return VlmCaptioner(model, processor, spec=spec, weights_hash=digest, prompt=prompt, num_frames=num_frames)
