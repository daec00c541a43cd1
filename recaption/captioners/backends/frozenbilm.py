"""FrozenBiLM behind the captioner interface; the model and its decoding are in `frozen_bilm`.

captioner = load_captioner("frozenbilm:models/mine")
"""

from __future__ import annotations

import os

import numpy as np
import torch

from recaption import hub
from recaption.captioners.backends.checkpoint_folder import OwnFolder, clip_framing, read_own, stacked
from recaption.captioners.backends.frozenbilm_model import FORMAT, NUM_ROUNDS, FrozenBiLM
from recaption.captioners.base import Batch, Describing, Said, Told, uniform_draws
from recaption.captioners.pretrained import weights_hash


class FrozenBiLMCaptioner(Describing):
    """`config`: what FrozenBiLM takes, and `num_frames`, `lengths` (in words, of the captions it was trained on)."""

    has_beams = False

    def __init__(self, model: FrozenBiLM, own: OwnFolder, *, spec: str, weights_hash: str) -> None:
        self.model, self.words = model.eval().requires_grad_(False), own.words
        self.name, self.weights_hash = spec, weights_hash
        self.num_frames, self.frame_px = own.config["num_frames"], own.config["vision"]["image_size"]
        self.lengths = sorted(own.config["lengths"])
        self.max_tokens = self.lengths[-1]
        self._framing = clip_framing(self.frame_px)

    def tell(self, batch: Batch) -> Told:
        weight = self.model.prefix.weight
        pixels = stacked(batch.clips, self._framing, self.num_frames).to(weight.device, weight.dtype)
        most = batch.decoding.max_tokens
        lengths = [length for length in self.lengths if length <= most] or [most]
        draws = [uniform_draws(batch.seed, key, NUM_ROUNDS * lengths[-1]) for key in batch.keys]
        filled = self.model.fill(
            pixels,
            self.words,
            lengths=lengths,
            temperature=batch.decoding.temperature,
            draws_BRM=np.stack(draws).reshape(len(draws), NUM_ROUNDS, lengths[-1]),
        )
        return Told(
            said=[
                Said(text=self.words.decode(one.tokens), num_tokens=len(one.tokens), mean_logprob=one.mean_logprob)
                for one in filled
            ]
        )


def open_frozenbilm(place: str, *, device: str, dtype: torch.dtype | None) -> FrozenBiLMCaptioner:
    """Raises as `own_folder.read_own`; WeightsUnreachableError for a hub id that is neither cached nor offered."""
    spec = f"frozenbilm:{place}"
    if not os.path.isdir(place):
        from huggingface_hub import snapshot_download

        what, give = f"captioner {spec}", "give a folder as frozenbilm:FOLDER"
        is_local = hub.is_on_disk(place, what=what, give=give)
        try:
            place = snapshot_download(place, local_files_only=is_local)
        except Exception as error:  # the hub's client passes on whatever its network layer raises
            raise hub.unreachable(what, error, give) from error
    own = read_own(place, FORMAT)
    model = FrozenBiLM(own.config)
    own.load(model)
    digest = weights_hash(model)
    return FrozenBiLMCaptioner(
        model.to(device=device, dtype=dtype or torch.float32), own, spec=spec, weights_hash=digest
    )
