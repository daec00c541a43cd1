"""mPLUG-2 as a captioner; experimental: never run with published weights. The model is in `mplug2_model`.

convert_checkpoint("mPLUG2_caption.pth", tokenizer, "models/mine")      # of mplug2_model; names are its source code's
captioner = load_captioner("mplug2:models/mine")
"""

from __future__ import annotations

import torch

from recaption import hub
from recaption.captioners.backends.checkpoint_folder import (
    CheckpointFolder,
    openai_clip_preprocessor,
    read_checkpoint_folder,
    stack_clips,
)
from recaption.captioners.backends.hf_generate import generate_completions, reset_generation_config
from recaption.captioners.backends.mplug2_model import FORMAT, MPlug2
from recaption.captioners.base import BaseCaptioner, ClipBatch, GenerationOutput
from recaption.errors import UsageError
from recaption.weights import weights_hash

PROMPT = "a video of"
"""The prompt that the published captioners continue."""


class MPlug2Captioner(BaseCaptioner):
    """Captions of an `MPlug2`; its config holds the arguments of `MPlug2`, `num_frames`, and `prompt` if not `PROMPT`."""

    def __init__(self, model: MPlug2, folder: CheckpointFolder, *, spec: str, weights_hash: str, prompt: str) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), folder.tokenizer
        self.name, self.weights_hash = spec, weights_hash
        self.num_frames, self.frame_px = folder.config["num_frames"], folder.config["vision"]["frame_px"]
        context = folder.config["text"]["max_position_embeddings"]
        self._prompt_ids = [
            self.tokenizer.start_id,
            *self.tokenizer.encode(prompt or folder.config.get("prompt", PROMPT)),
        ]
        self.max_tokens = context - len(self._prompt_ids)
        if self.max_tokens < 1:
            raise UsageError(
                f"captioner {spec}: a prompt of {len(self._prompt_ids) - 1} tokens leaves no room in its context of "
                f"{context}"
            )
        self._framing = openai_clip_preprocessor(self.frame_px)
        reset_generation_config(model.text_decoder)

    def generate(self, batch: ClipBatch) -> GenerationOutput:
        from transformers import DynamicCache, EncoderDecoderCache

        weight = self.model.visn_emb_norm.weight
        pixels = stack_clips(batch.clips, self._framing, self.num_frames, weight.device).to(weight.dtype)
        with torch.inference_mode():
            frames_BLD = self.model.encode_video(pixels)
        prompt_BM = torch.tensor([self._prompt_ids] * len(batch.clips), device=weight.device)
        completions = generate_completions(
            self.model.text_decoder,
            {
                "input_ids": prompt_BM,
                "attention_mask": torch.ones_like(prompt_BM),
                "encoder_hidden_states": frames_BLD,
                # `generate` would make a cache for self-attention only; this one caches cross-attention too
                "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
            },
            decoding=batch.decoding,
            uniform_BM=batch.uniforms_RM,
            end_ids=(self.tokenizer.end_id,),
            pad_id=self.tokenizer.pad_id,
        )
        return GenerationOutput(texts=[completion.decode(self.tokenizer) for completion in completions])


def open_mplug2(path: str, *, device: str, dtype: torch.dtype | None, prompt: str) -> MPlug2Captioner:
    """Open a checkpoint folder; raises as `read_checkpoint_folder`, and UsageError for a prompt longer than the context."""
    spec = f"mplug2:{path}"
    folder = read_checkpoint_folder(path, FORMAT)
    with hub.damaged_as_mismatch(f"{folder.path}/config.json"):
        model = MPlug2(folder.config)
        folder.load_weights(model)
    digest = weights_hash(model.state_dict())
    model = model.to(device=device, dtype=dtype or torch.float32)
    return MPlug2Captioner(model, folder, spec=spec, weights_hash=digest, prompt=prompt)
