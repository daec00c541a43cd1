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

from recaption.captioners.preprocess import Framing
from recaption.captioners.pretrained import weights_hash
from recaption.captioners.registry import SPECS
from recaption.captioners.videococa.captioner import token_lengths
from recaption.captioners.videococa.checkpoint import MEASURED, TINY_FOLDER, build_model, read_folder, read_open_clip
from recaption.captioners.videococa.model import VideoCoCa
from recaption.captioners.videococa.tokenizer import BytePairVocabulary, ClipVocabulary
from recaption.errors import CheckpointMismatchError, UsageError

MAX_CUT_SHARE = 0.2
"""Of the captions to learn from, the share that may be longer than the context; cut captions teach to stop mid-way."""


@dataclass(frozen=True, kw_only=True)
class Start:
    config: dict[str, Any]
    """What `checkpoint.build_model` rebuilds the model from."""
    model: VideoCoCa
    vocabulary: BytePairVocabulary | ClipVocabulary
    came_from: dict[str, str]
    """Spec and weights hash of the captioner it was; empty: from nothing."""

    @property
    def framing(self) -> Framing:
        return Framing(**self.config["framing"])


def from_nothing(config: dict[str, Any], vocabulary: BytePairVocabulary, *, temporal_std: float, seed: int) -> Start:
    """A model with first weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        if model.temporal_embedding is not None:
            # zero would hide the order of frames until its first gradients
            nn.init.normal_(model.temporal_embedding, std=temporal_std)
    return Start(config=config, model=model, vocabulary=vocabulary, came_from={})


def from_captioner(spec: str, *, temporal: bool = True) -> Start:
    """The captioner `spec` as the start of a training.

    Args:
        temporal: where it cannot tell the order of frames, give it a temporal embedding of zeros.

    Raises:
        UsageError: no captioner there, or one that is not a VideoCoCa.
        WeightsUnreachableError: its weights are out of reach.
        CheckpointMismatchError: weights, vocabulary and config do not belong together.
    """
    vocabulary: BytePairVocabulary | ClipVocabulary
    kind, _, rest = spec.partition(":")
    if kind == "open_clip" and "/" in rest:
        config, model = read_open_clip(rest)
        vocabulary = ClipVocabulary(config["coca"]["text_cfg"]["context_length"])
        state = model.state_dict()
    elif spec == "tiny" or os.path.isdir(spec):
        saved = read_folder(TINY_FOLDER if spec == "tiny" else spec)
        config = {key: value for key, value in saved.config.items() if key not in MEASURED}
        vocabulary, state = saved.vocabulary, saved.state
        model = build_model(config)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointMismatchError(f"{saved.weights_path} does not fit its own config.json: {error}") from error
    else:
        raise UsageError(f"--start {spec!r} is no captioner that can be trained further; there are {SPECS}")
    _check_vocabulary(spec, config, vocabulary)
    came_from = {"spec": spec, "weights": weights_hash(model)}
    if temporal and not config["temporal"]:
        config = {**config, "temporal": True}
        before, model = model, build_model(config)
        model.load_state_dict(before.state_dict(), strict=False)
        assert isinstance(model.temporal_embedding, nn.Parameter)
        nn.init.zeros_(model.temporal_embedding)
    if isinstance(vocabulary, BytePairVocabulary):
        config = {**config, "merges": vocabulary.merges}  # a checkpoint has no tokenizer.json beside it
    return Start(config=config, model=model, vocabulary=vocabulary, came_from=came_from)


def _check_vocabulary(spec: str, config: dict[str, Any], vocabulary: BytePairVocabulary | ClipVocabulary) -> None:
    """Raises CheckpointMismatchError where the tokeniser's ids are not those of the model's embedding."""
    known = config["coca"]["text_cfg"]["vocab_size"]
    # CLIP's end token is its last one; coca_base has room for tokens that CLIP does not have
    exact = isinstance(vocabulary, BytePairVocabulary)
    num_tokens = vocabulary.num_tokens if isinstance(vocabulary, BytePairVocabulary) else vocabulary.special.end + 1
    if num_tokens > known or (exact and num_tokens != known):
        raise CheckpointMismatchError(
            f"captioner {spec}: its tokeniser has {num_tokens} tokens, its model {known}; they do not belong together"
        )


def check_texts(vocabulary: BytePairVocabulary | ClipVocabulary, texts: Sequence[str]) -> None:
    """Refuse captions that the context cannot hold.

    Raises:
        UsageError: more than `MAX_CUT_SHARE` of the captions are longer than the context.
    """
    if not texts:
        return
    ids_SM = vocabulary.encode(texts)
    cut = float((token_lengths(ids_SM, vocabulary) >= vocabulary.context_length).float().mean())
    if cut > MAX_CUT_SHARE:
        raise UsageError(
            f"{cut:.0%} of the captions are longer than the {vocabulary.context_length} tokens of the captioner's context; "
            "start from a captioner with a longer one, from nothing with a larger context_length, or use shorter captions"
        )
