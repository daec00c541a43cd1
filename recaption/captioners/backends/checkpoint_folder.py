"""Folders of the captioners that are built here from parts: config.json, tokenizer.json, model.safetensors.

    write_own("out/mine", config={"format": "frozenbilm-1", ...}, words=words, model=model)
    own = read_own("out/mine", "frozenbilm-1")
    own.load(FrozenBiLM(own.config))

Any tokenizer of the `tokenizers` package will do that has the four special tokens.
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
from recaption.captioners.preprocess import Framing
from recaption.errors import CheckpointMismatchError, UsageError

SPECIAL = {"start": "[CLS]", "end": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on; both kinds of captioner see through a CLIP vision transformer."""


class Words:
    """A tokenizer with the ids of its special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab(with_added_tokens=True)
        if missing := [token for token in SPECIAL.values() if token not in ids]:
            raise CheckpointMismatchError(f"the tokenizer lacks {', '.join(missing)}: it is not that of this captioner")
        self.start, self.end, self.pad, self.mask = (ids[SPECIAL[name]] for name in ("start", "end", "pad", "mask"))
        self.num_tokens = tokenizer.get_vocab_size(with_added_tokens=True)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What one training step sees: B clips and what is said about them."""

    pixels_BTCHW: Tensor
    ids_BM: Tensor
    """Words of each caption, no special tokens, then `words.pad`."""
    lengths_B: Tensor


def lesson(pixels_BTCHW: Tensor, texts: Sequence[str], words: Words) -> Lesson:
    ids = [words.ids(text) for text in texts]
    longest = max(map(len, ids))
    ids_BM = torch.tensor([row + [words.pad] * (longest - len(row)) for row in ids])
    return Lesson(pixels_BTCHW=pixels_BTCHW, ids_BM=ids_BM, lengths_B=torch.tensor([len(row) for row in ids]))


def clip_framing(frame_px: int) -> Framing:
    """CLIP's own cut and colours."""
    return Framing(frame_px=frame_px, fit="crop", mean=CLIP_MEAN, std=CLIP_STD)


def stacked(clips: Sequence[np.ndarray], framing: Framing, num_frames: int) -> Tensor:
    """(B, T, 3, H, W): each clip with exactly `num_frames`, frames of short ones shown twice."""
    return torch.stack([framing.tensor(clip, num_frames=num_frames, repeat=True) for clip in clips])


@dataclass(frozen=True, kw_only=True)
class OwnFolder:
    """What a folder holds."""

    place: Path
    config: dict[str, Any]
    words: Words

    def load(self, model: nn.Module) -> None:
        """Put the weights into the model of `config`; raises CheckpointMismatchError where they do not fit."""
        if self.words.num_tokens > self.config["num_tokens"]:
            raise CheckpointMismatchError(
                f"{self.place}: its tokenizer has {self.words.num_tokens} tokens, its model {self.config['num_tokens']}: "
                "they do not belong together"
            )
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        try:
            load_model(model, self.place / "model.safetensors")
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointMismatchError(
                f"{self.place}/model.safetensors does not fit its config: {hub.first_line(error)}"
            ) from error


def write_own(folder: str | Path, *, config: dict[str, Any], words: Words, model: nn.Module) -> Path:
    """Write a captioner folder; `config` has `format` and `num_tokens`, and what its model is built from."""
    from safetensors.torch import save_model

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "model.safetensors"))  # tied weights once
    (folder / "tokenizer.json").write_text(words.tokenizer.to_str() + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def read_own(place: str | Path, form: str) -> OwnFolder:
    """
    Raises:
        UsageError: a file is missing.
        CheckpointMismatchError: a folder of another kind of captioner, or with a tokenizer of another.
    """
    from tokenizers import Tokenizer

    folder = Path(place)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} holds no captioner of format {form!r}: {name} is missing")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != form:
        found = config.get("format") or config.get("model_type") or "no format"
        raise CheckpointMismatchError(f"{folder} is a captioner of another kind: {found}, where {form!r} is needed")
    words = Words(Tokenizer.from_file(str(folder / "tokenizer.json")))
    return OwnFolder(place=folder, config=config, words=words)
