"""FrozenBiLM as a captioner; experimental: never run with published weights. The model is in `frozenbilm_model`.

captioner = load_captioner("frozenbilm:models/mine")
"""

from __future__ import annotations

import os

import torch

from recaption import hub
from recaption.captioners.backends.checkpoint_folder import (
    CheckpointFolder,
    openai_clip_preprocessor,
    read_checkpoint_folder,
    stack_clips,
)
from recaption.captioners.backends.frozenbilm_model import FORMAT, NUM_ITERATIONS, FrozenBiLM
from recaption.captioners.base import BaseCaptioner, ClipBatch, GeneratedText, GenerationOutput
from recaption.weights import weights_hash


class FrozenBiLMCaptioner(BaseCaptioner):
    """Captions by mask-predict.

    Its config holds the arguments of `FrozenBiLM`, `num_frames`, and `lengths`: the lengths in tokens that are tried.
    """

    supports_beam_search = False

    def __init__(self, model: FrozenBiLM, folder: CheckpointFolder, *, spec: str, weights_hash: str) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), folder.tokenizer
        self.name, self.weights_hash = spec, weights_hash
        self.num_frames, self.frame_px = folder.config["num_frames"], folder.config["vision"]["image_size"]
        self.lengths = sorted(folder.config["lengths"])
        self.max_tokens = self.lengths[-1]
        self._framing = openai_clip_preprocessor(self.frame_px)

    def generate(self, batch: ClipBatch) -> GenerationOutput:
        weight = self.model.prefix.weight
        pixels = stack_clips(batch.clips, self._framing, self.num_frames, weight.device).to(weight.dtype)
        max_tokens = batch.decoding.max_tokens
        lengths = [length for length in self.lengths if length <= max_tokens] or [max_tokens]
        uniforms_RU = batch.sample_uniforms(NUM_ITERATIONS * lengths[-1])
        predictions = self.model.mask_predict(
            pixels,
            self.tokenizer,
            lengths=lengths,
            temperature=batch.decoding.temperature,
            uniform_BIM=uniforms_RU.reshape(-1, NUM_ITERATIONS, lengths[-1]),
        )
        return GenerationOutput(
            texts=[
                GeneratedText(
                    text=self.tokenizer.decode(prediction.tokens),
                    num_tokens=len(prediction.tokens),
                    mean_logprob=prediction.mean_logprob,
                )
                for prediction in predictions
            ]
        )


def open_frozenbilm(path_or_id: str, *, device: str, dtype: torch.dtype | None) -> FrozenBiLMCaptioner:
    """Open a checkpoint folder, or the hub repository of one.

    Raises:
        UsageError, CheckpointMismatchError: as `read_checkpoint_folder`.
        WeightsUnreachableError: a hub id that is neither cached nor downloadable.
    """
    spec = f"frozenbilm:{path_or_id}"
    if not os.path.isdir(path_or_id):
        from huggingface_hub import snapshot_download

        what, hint = f"captioner {spec}", "give a folder as frozenbilm:FOLDER"
        is_local = hub.is_on_disk(path_or_id, what=what, hint=hint)
        try:
            path_or_id = snapshot_download(path_or_id, local_files_only=is_local)
        except Exception as error:  # the hub's client passes on whatever its network layer raises
            raise hub.unreachable_error(what, error, hint) from error
    folder = read_checkpoint_folder(path_or_id, FORMAT)
    with hub.damaged_as_mismatch(f"{folder.path}/config.json"):
        model = FrozenBiLM(folder.config)
        folder.load_weights(model)
    digest = weights_hash(model.state_dict())
    return FrozenBiLMCaptioner(
        model.to(device=device, dtype=dtype or torch.float32), folder, spec=spec, weights_hash=digest
    )
