"""Any image-text-to-text model of the transformers package as captioner: Qwen2.5-VL, SmolVLM, LLaVA-OneVision, InternVL ...

    captioner = load_captioner("vlm:Qwen/Qwen2.5-VL-7B-Instruct", device="cuda", prompt="What happens here?")

A clip is shown as a video where the model's processor takes videos, else as pictures, in the model's own chat template.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from recaption.captioners.backends.hf_generate import Continuation, continue_rows, plain_generation
from recaption.captioners.backends.instructions import QUESTIONS, question_for
from recaption.captioners.base import Batch, Describing, Told
from recaption.captioners.preprocess import choose_frames
from recaption.captioners.pretrained import check_vocabulary, open_config, open_model, open_processor, weights_hash
from recaption.errors import CheckpointMismatchError, UsageError

NUM_FRAMES = 8


FRAME_PX = 448
"""Shorter side that frames are read at; the model's processor scales them to what it wants."""


MAX_TOKENS = 512


FRAMES_PER_SECOND = 2.0
"""What models that print times between frames are told; the frames do not carry their own times."""


IMAGE_TOKEN_NAMES = ("image_token_id", "image_token_index")


class VlmCaptioner(Describing):
    """A model with a chat template, and its processor."""

    kinds = tuple(QUESTIONS)

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
        self._ends = plain_generation(model) or (tokenizer.eos_token_id,)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._ends[0]
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self._pad

    def tell(self, batch: Batch) -> Told:
        chosen = [clip[choose_frames(len(clip), self.num_frames, repeat=False)] for clip in batch.clips]
        of_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, clip in enumerate(chosen):
            of_shape[clip.shape].append(row)  # not all processors take clips of several sizes at once
        question = question_for(batch.kind, self.prompt)
        draws_BM = batch.draws_RM
        continuations: dict[int, Continuation] = {}
        for rows in of_shape.values():
            inputs = self._inputs([chosen[row] for row in rows], question, batch.decoding.max_tokens)
            made = continue_rows(
                self.model,
                inputs,
                decoding=batch.decoding,
                draws_BM=draws_BM[rows],
                ends=self._ends,
                pad=self._pad,
            )
            continuations |= zip(rows, made, strict=True)
        return Told(said=[continuations[row].said(self.processor.tokenizer) for row in range(len(chosen))])

    def _inputs(self, clips: list[np.ndarray], question: str, max_tokens: int) -> Any:
        """What the model takes for clips of one shape, on its device and in its precision.

        Raises:
            UsageError: frames and question do not fit its context.
        """
        num_frames = len(clips[0])
        shown = [{"type": "video"}] if self.takes_videos else [{"type": "image"}] * num_frames
        message = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
        words = self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        pictures: dict[str, Any] = {"images": [list(clip) for clip in clips]}
        if self.takes_videos:
            times = {
                "total_num_frames": num_frames,
                "fps": FRAMES_PER_SECOND,
                "duration": num_frames / FRAMES_PER_SECOND,
                "frames_indices": list(range(num_frames)),
            }
            # channels first: a clip of three pixels' height is told from one with three channels
            pictures = {
                "videos": [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips],
                "videos_kwargs": {"do_sample_frames": False, "video_metadata": [times] * len(clips)},
            }
        inputs = self.processor(text=[words] * len(clips), padding=True, return_tensors="pt", **pictures)
        length = inputs["input_ids"].shape[1]
        if self.context_tokens and length + max_tokens > self.context_tokens:
            raise UsageError(
                f"captioner {self.name}: {num_frames} frames and the question are {length} tokens, {max_tokens} more are "
                f"to be written, and its context has {self.context_tokens}; use --caption.num-frames or a shorter prompt"
            )
        return inputs.to(self.model.device, self.model.dtype)


def open_vlm(place: str, *, device: str, dtype: torch.dtype | None, prompt: str, num_frames: int) -> VlmCaptioner:
    """Raises as `weights.open_config` and `weights.open_model`; UsageError where there is no chat template."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    spec = f"vlm:{place}"
    known = AutoModelForImageTextToText._model_mapping
    takes = "models for image-text-to-text, such as qwen2_5_vl, qwen3_vl, smolvlm, llava_onevision, internvl"
    config = open_config(place, spec=spec, takes=takes, fits=lambda config: type(config) in known)
    processor = open_processor(AutoProcessor, place, spec=spec)
    if not getattr(processor, "chat_template", None):
        raise UsageError(f"captioner {spec}: it has no chat template; take its instruct or chat variant")
    model = open_model(AutoModelForImageTextToText, place, spec=spec)
    check_vocabulary(processor.tokenizer, model.get_input_embeddings().num_embeddings, spec=spec)
    expected = next((getattr(config, name) for name in IMAGE_TOKEN_NAMES if hasattr(config, name)), None)
    found = getattr(processor, "image_token_id", expected)
    if expected is not None and found != expected:
        raise CheckpointMismatchError(
            f"captioner {spec}: pictures are token {found} to its tokenizer, {expected} to its model: they do not belong "
            "together"
        )
    digest = weights_hash(model)
    if dtype is None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    model = model.to(device=device, dtype=dtype)
    return VlmCaptioner(model, processor, spec=spec, weights_hash=digest, prompt=prompt, num_frames=num_frames)
