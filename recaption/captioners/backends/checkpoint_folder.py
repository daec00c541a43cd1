"""Checkpoint folders of FrozenBiLM and mPLUG-2: config.json, tokenizer.json, model.safetensors.

    write_checkpoint_folder("out/mine", config={"format": "frozenbilm-1", ...}, tokenizer=tokenizer, model=model)
    folder = read_checkpoint_folder("out/mine", "frozenbilm-1")
    folder.load_weights(FrozenBiLM(folder.config))

Any tokenizer of the `tokenizers` package works that has the four special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recaption import hub
from recaption.captioners.preprocess import FramePreprocessor, uniform_frame_indices, upload
from recaption.errors import CheckpointMismatchError, UsageError

SPECIAL_TOKENS = {"start": "[CLS]", "end": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Image statistics of CLIP's training set; FrozenBiLM and mPLUG-2 both start from a CLIP vision transformer."""


class Tokenizer:
    """A tokenizer of the `tokenizers` package, with the ids of its special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if missing := [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]:
            raise CheckpointMismatchError(
                f"the tokenizer lacks {', '.join(missing)}: it is not the tokenizer of this captioner"
            )
        self.start_id, self.end_id, self.pad_id, self.mask_id = (
            vocabulary[SPECIAL_TOKENS[name]] for name in ("start", "end", "pad", "mask")
        )
        self.special_ids = [self.start_id, self.end_id, self.pad_id, self.mask_id]
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBatch:
    """B clips and one caption each."""

    pixels_BTCHW: Tensor
    token_ids_BM: Tensor
    """Captions without special tokens, padded with `tokenizer.pad_id`."""
    lengths_B: Tensor
    """Tokens of each caption without padding."""


def collate(pixels_BTCHW: Tensor, texts: Sequence[str], tokenizer: Tokenizer) -> TrainingBatch:
    """Tokenize and pad the captions of B clips."""
    token_ids = [tokenizer.encode(text) for text in texts]
    longest = max(map(len, token_ids))
    token_ids_BM = torch.tensor([ids + [tokenizer.pad_id] * (longest - len(ids)) for ids in token_ids])
    lengths_B = torch.tensor([len(ids) for ids in token_ids])
    return TrainingBatch(pixels_BTCHW=pixels_BTCHW, token_ids_BM=token_ids_BM, lengths_B=lengths_B)


def openai_clip_preprocessor(frame_px: int) -> FramePreprocessor:
    """OpenAI CLIP's preprocessing: center crop, and normalization by CLIP's own mean and standard deviation."""
    return FramePreprocessor(frame_px=frame_px, fit="crop", mean=CLIP_MEAN, std=CLIP_STD)


def stack_clips(
    clips: Sequence[np.ndarray], preprocessor: FramePreprocessor, num_frames: int, device: torch.device | None = None
) -> Tensor:
    """Clips as one tensor (B, T, 3, H, W) of exactly `num_frames` each, on `device`; short clips repeat frames."""
    frames = [
        preprocessor.resize_frames(clip, uniform_frame_indices(len(clip), num_frames, repeat=True)) for clip in clips
    ]
    return preprocessor.normalise(upload(np.stack(frames), device or torch.device("cpu")))


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """An opened checkpoint folder: its config and tokenizer; `load_weights` fills the model."""

    path: Path
    config: dict[str, Any]
    tokenizer: Tokenizer

    def load_weights(self, model: nn.Module) -> None:
        """Load model.safetensors into the model built from `config`.

        Raises:
            CheckpointMismatchError: weights or tokenizer do not fit the model.
        """
        if self.tokenizer.vocab_size > self.config["num_tokens"]:
            raise CheckpointMismatchError(
                f"{self.path}: its tokenizer has {self.tokenizer.vocab_size} tokens, its model "
                f"{self.config['num_tokens']}: they do not belong together"
            )
        from safetensors.torch import load_model

        try:
            load_model(model, self.path / "model.safetensors")
        except Exception as error:  # damaged files make safetensors and torch raise anything
            raise CheckpointMismatchError(
                f"{self.path}/model.safetensors does not fit its config: {hub.first_line(error)}"
            ) from error


def write_checkpoint_folder(
    folder: str | Path, *, config: dict[str, Any], tokenizer: Tokenizer, model: nn.Module
) -> Path:
    """Write a checkpoint folder; `config` holds `format`, `num_tokens` and the arguments of the model."""
    from safetensors.torch import save_model

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "model.safetensors"))  # writes tied weights once
    (folder / "tokenizer.json").write_text(tokenizer.tokenizer.to_str() + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def read_checkpoint_folder(folder: str | Path, expected_format: str) -> CheckpointFolder:
    """Open a checkpoint folder and check its format; the weights are not read yet.

    Raises:
        UsageError: a file is missing.
        CheckpointMismatchError: the config has another format, or the tokenizer lacks a special token.
    """
    import tokenizers

    path = Path(folder)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (path / name).is_file():
            raise UsageError(f"{path} holds no captioner of format {expected_format!r}: {name} is missing")
    with hub.damaged_as_mismatch(f"{path}/config.json"):
        config = dict(json.loads((path / "config.json").read_text(encoding="utf-8")))
    if config.get("format") != expected_format:
        found = config.get("format") or config.get("model_type") or "no format"
        raise CheckpointMismatchError(
            f"{path} is a captioner of another kind: {found}, where {expected_format!r} is needed"
        )
    hub.check_sizes(config, what=f"{path}/config.json")
    with hub.damaged_as_mismatch(f"{path}/tokenizer.json"):
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")))
    return CheckpointFolder(path=path, config=config, tokenizer=tokenizer)
