"""Where a captioner's training starts: from nothing, or from a captioner that is there.

    start = from_nothing(captioner_config(settings, vocabulary), vocabulary, temporal_std=0.1, seed=0)
    start = from_captioner("tiny")                       # or a folder, or open_clip:MODEL/TAG
    start.model, start.vocabulary, start.config

A warm start keeps tokeniser, framing and design. What it may gain is a temporal embedding of zeros, with which it says
what it said before, and kinds of captions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.pretrained import weights_hash
from recaption.captioners.registry import SPEC_FORMATS
from recaption.captioners.videococa.captioner import token_lengths
from recaption.captioners.videococa.checkpoint import (
    CALIBRATED_KEYS,
    TINY_FOLDER,
    build_model,
    load_open_clip_model,
    read_captioner_folder,
)
from recaption.captioners.videococa.model import VideoCoCa
from recaption.captioners.videococa.tokenizer import BPETokenizer, ClipTokenizer
from recaption.errors import CheckpointMismatchError, UsageError

MAX_CUT_SHARE = 0.2
"""Of the captions to learn from, the share that may be longer than the context; cut captions teach to stop mid-way."""


@dataclass(frozen=True, kw_only=True)
class Start:
    config: dict[str, Any]
    """What `checkpoint.build_model` rebuilds the model from."""
    model: VideoCoCa
    tokenizer: BPETokenizer | ClipTokenizer
    came_from: dict[str, str]
    """Spec and weights hash of the captioner it was; empty: from nothing."""

    @property
    def preprocessor(self) -> FramePreprocessor:
        return FramePreprocessor(**self.config["framing"])


def from_nothing(config: dict[str, Any], tokenizer: BPETokenizer, *, temporal_std: float, seed: int) -> Start:
    """A model with first weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        if model.temporal_embedding is not None:
            # zero would hide the order of frames until its first gradients
            nn.init.normal_(model.temporal_embedding, std=temporal_std)
    return Start(config=config, model=model, tokenizer=tokenizer, came_from={})


def from_captioner(spec: str, *, temporal: bool = True) -> Start:
    """The captioner `spec` as the start of a training.

    Args:
        temporal: where it cannot tell the order of frames, give it a temporal embedding of zeros.

    Raises:
        UsageError: no captioner there, or one that is not a VideoCoCa.
        WeightsUnreachableError: its weights are out of reach.
        CheckpointMismatchError: weights, vocabulary and config do not belong together.
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
        raise UsageError(f"--start {spec!r} is no captioner that can be trained further; there are {SPEC_FORMATS}")
    _check_vocabulary(spec, config, tokenizer)
    came_from = {"spec": spec, "weights": weights_hash(model)}
    if temporal and not config["temporal"]:
        config = {**config, "temporal": True}
        before, model = model, build_model(config)
        model.load_state_dict(before.state_dict(), strict=False)
        assert isinstance(model.temporal_embedding, nn.Parameter)
        nn.init.zeros_(model.temporal_embedding)
    if isinstance(tokenizer, BPETokenizer):
        config = {**config, "merges": tokenizer.merges}  # a checkpoint has no tokenizer.json beside it
    return Start(config=config, model=model, tokenizer=tokenizer, came_from=came_from)


def _check_vocabulary(spec: str, config: dict[str, Any], tokenizer: BPETokenizer | ClipTokenizer) -> None:
    """Raises CheckpointMismatchError where the tokeniser's ids are not those of the model's embedding."""
    known = config["coca"]["text_cfg"]["vocab_size"]
    # CLIP's end token is its last one; coca_base has room for tokens that CLIP does not have
    exact = isinstance(tokenizer, BPETokenizer)
    num_tokens = tokenizer.num_tokens if isinstance(tokenizer, BPETokenizer) else tokenizer.special.end + 1
    if num_tokens > known or (exact and num_tokens != known):
        raise CheckpointMismatchError(
            f"captioner {spec}: its tokeniser has {num_tokens} tokens, its model {known}; they do not belong together"
        )


def check_texts(tokenizer: BPETokenizer | ClipTokenizer, texts: Sequence[str]) -> None:
    """Refuse captions that the context cannot hold.

    Raises:
        UsageError: more than `MAX_CUT_SHARE` of the captions are longer than the context.
    """
    if not texts:
        return
    ids_SM = tokenizer.encode(texts)
    cut = float((token_lengths(ids_SM, tokenizer) >= tokenizer.context_length).float().mean())
    if cut > MAX_CUT_SHARE:
        raise UsageError(
            f"{cut:.0%} of the captions are longer than the {tokenizer.context_length} tokens of the captioner's context; "
            "start from a captioner with a longer one, from nothing with a larger context_length, or use shorter captions"
        )
