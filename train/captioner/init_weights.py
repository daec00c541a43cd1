"""Initial weights of captioner training: from scratch, or from an existing captioner.

    initial = from_scratch(captioner_config(settings, vocabulary), vocabulary, temporal_std=0.1, seed=0)
    initial = from_captioner("tiny")                       # or a folder, or open_clip:MODEL/TAG
    initial.model, initial.vocabulary, initial.config

A captioner keeps its tokenizer, framing and architecture. It may gain a zero-initialised temporal embedding, which does
not change its output, and new caption kinds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.registry import SPEC_FORMATS
from recaption.captioners.videococa.captioner import token_lengths
from recaption.captioners.videococa.checkpoint import (
    CALIBRATED_KEYS,
    TINY_FOLDER,
    build_model,
    load_open_clip_model,
    read_captioner_folder,
)
from recaption.captioners.videococa.model import FrameEncoder, VideoCoCa
from recaption.captioners.videococa.tokenizer import BPETokenizer, ClipTokenizer
from recaption.errors import CheckpointMismatchError, UsageError
from recaption.weights import weights_hash

MAX_TRUNCATED_FRACTION = 0.2
"""Maximum fraction of training captions longer than the context; truncated ones teach it to stop mid-sentence."""


@dataclass(frozen=True, kw_only=True)
class InitialCaptioner:
    """Model, vocabulary and config that a training starts from."""

    config: dict[str, Any]
    """Config from which `videococa.checkpoint.build_model` rebuilds the model."""
    model: VideoCoCa
    tokenizer: BPETokenizer | ClipTokenizer
    provenance: dict[str, str]
    """Spec and weights hash of the original captioner; empty if from scratch."""

    @property
    def preprocessor(self) -> FramePreprocessor:
        return FramePreprocessor(**self.config["framing"])


def from_scratch(
    config: dict[str, Any], tokenizer: BPETokenizer, *, temporal_std: float, seed: int
) -> InitialCaptioner:
    """A randomly initialised model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        if isinstance(model.clip_encoder, FrameEncoder) and model.clip_encoder.temporal_embedding is not None:
            # not zero, which would hide the frame order at first
            nn.init.normal_(model.clip_encoder.temporal_embedding, std=temporal_std)
    return InitialCaptioner(config=config, model=model, tokenizer=tokenizer, provenance={})


def from_captioner(spec: str, *, temporal: bool = True) -> InitialCaptioner:
    """Load the captioner `spec` for further training.

    Args:
        temporal: add a zero-initialised temporal embedding if it has none.

    Raises:
        UsageError: no captioner there, or not a VideoCoCa.
        WeightsUnreachableError: weights neither on disk nor downloadable.
        CheckpointMismatchError: weights, vocabulary and config do not match.
    """
    tokenizer: BPETokenizer | ClipTokenizer
    kind, _, rest = spec.partition(":")
    if kind == "open_clip" and "/" in rest:
        config, model = load_open_clip_model(rest)
        tokenizer = ClipTokenizer(config["coca"]["text_cfg"]["context_length"])
        state = model.state_dict()
    elif spec == "tiny" or os.path.isdir(spec):
        saved = read_captioner_folder(TINY_FOLDER if spec == "tiny" else spec)
        config = {key: value for key, value in saved.config.items() if key not in CALIBRATED_KEYS}
        tokenizer, state = saved.tokenizer, saved.state
        model = build_model(config)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointMismatchError(f"{saved.weights_path} does not fit its own config.json: {error}") from error
    else:
        raise UsageError(
            f"--init-from {spec!r} is not a captioner that can be trained further; use one of {SPEC_FORMATS}"
        )
    _check_vocabulary(spec, config, tokenizer)
    provenance = {"spec": spec, "weights": weights_hash(model.state_dict())}
    if temporal and not config["temporal"]:
        config = {**config, "temporal": True}
        original, model = model, build_model(config)
        model.load_state_dict(original.state_dict(), strict=False)
        assert isinstance(model.clip_encoder, FrameEncoder)
        assert model.clip_encoder.temporal_embedding is not None
        nn.init.zeros_(model.clip_encoder.temporal_embedding)
    if isinstance(tokenizer, BPETokenizer):
        config = {**config, "merges": tokenizer.merges}  # a training checkpoint has no tokenizer.json
    return InitialCaptioner(config=config, model=model, tokenizer=tokenizer, provenance=provenance)


def _check_vocabulary(spec: str, config: dict[str, Any], tokenizer: BPETokenizer | ClipTokenizer) -> None:
    """Raises CheckpointMismatchError if the tokenizer's vocabulary does not match the model's embedding."""
    vocab_size = config["coca"]["text_cfg"]["vocab_size"]
    # CLIP's end token is its last one; coca_base has embeddings for tokens that CLIP does not have
    exact = isinstance(tokenizer, BPETokenizer)
    num_tokens = tokenizer.num_tokens if isinstance(tokenizer, BPETokenizer) else tokenizer.special.end + 1
    if num_tokens > vocab_size or (exact and num_tokens != vocab_size):
        raise CheckpointMismatchError(
            f"captioner {spec}: its tokenizer has {num_tokens} tokens, its model {vocab_size}; they do not belong together"
        )


def check_caption_lengths(tokenizer: BPETokenizer | ClipTokenizer, texts: Sequence[str]) -> None:
    """Refuse captions that are too long for the context.

    Raises:
        UsageError: more than `MAX_TRUNCATED_FRACTION` of the captions are longer than the context.
    """
    if not texts:
        return
    ids_SM = tokenizer.encode(texts)
    truncated = float((token_lengths(ids_SM, tokenizer) >= tokenizer.context_length).float().mean())
    if truncated > MAX_TRUNCATED_FRACTION:
        raise UsageError(
            f"{truncated:.0%} of the captions are longer than the {tokenizer.context_length} tokens of the captioner's "
            "context; start from a captioner with a longer one or from scratch with a larger context_length, or use "
            "shorter captions"
        )
