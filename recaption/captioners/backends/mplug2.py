"""mPLUG-2 behind the captioner interface; the model is in `mplug2`.

captioner = load_captioner("mplug2:models/mine")
"""

from __future__ import annotations

import torch

from recaption.captioners.backends.checkpoint_folder import OwnFolder, clip_framing, read_own, stacked
from recaption.captioners.backends.hf_generate import continue_rows, plain_generation
from recaption.captioners.backends.mplug2_model import FORMAT, MPlug2
from recaption.captioners.base import Batch, Describing, Told
from recaption.captioners.pretrained import weights_hash
from recaption.errors import UsageError

PROMPT = "a video of"
"""What the published captioner goes on from."""


class MPlug2Captioner(Describing):
    """`config`: what `MPlug2` takes, and `num_frames`, and `prompt` where it is not `PROMPT`."""

    def __init__(self, model: MPlug2, own: OwnFolder, *, spec: str, weights_hash: str, prompt: str) -> None:
        self.model, self.words = model.eval().requires_grad_(False), own.words
        self.name, self.weights_hash = spec, weights_hash
        self.num_frames, self.frame_px = own.config["num_frames"], own.config["vision"]["frame_px"]
        context = own.config["text"]["max_position_embeddings"]
        self._prompt = [self.words.start, *self.words.ids(prompt or own.config.get("prompt", PROMPT))]
        self.max_tokens = context - len(self._prompt)
        if self.max_tokens < 1:
            raise UsageError(
                f"captioner {spec}: a prompt of {len(self._prompt) - 1} tokens leaves no room in its context of {context}"
            )
        self._framing = clip_framing(self.frame_px)
        plain_generation(model.text_decoder)

    def tell(self, batch: Batch) -> Told:
        from transformers import DynamicCache, EncoderDecoderCache

        weight = self.model.visn_emb_norm.weight
        pixels = stacked(batch.clips, self._framing, self.num_frames).to(weight.device, weight.dtype)
        with torch.inference_mode():
            frames_BLD = self.model.see(pixels)
        prompt_BM = torch.tensor([self._prompt] * len(batch.clips), device=weight.device)
        continuations = continue_rows(
            self.model.text_decoder,
            {
                "input_ids": prompt_BM,
                "attention_mask": torch.ones_like(prompt_BM),
                "encoder_hidden_states": frames_BLD,
                # `generate` would make a cache for the words alone; this one keeps the frames' keys and values too
                "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
            },
            decoding=batch.decoding,
            draws_BM=batch.draws_RM,
            ends=(self.words.end,),
            pad=self.words.pad,
        )
        return Told(said=[one.said(self.words) for one in continuations])


def open_mplug2(place: str, *, device: str, dtype: torch.dtype | None, prompt: str) -> MPlug2Captioner:
    """Raises as `own_folder.read_own`; UsageError where the prompt does not fit the context."""
    spec = f"mplug2:{place}"
    own = read_own(place, FORMAT)
    model = MPlug2(own.config)
    own.load(model)
    digest = weights_hash(model)
    model = model.to(device=device, dtype=dtype or torch.float32)
    return MPlug2Captioner(model, own, spec=spec, weights_hash=digest, prompt=prompt)
