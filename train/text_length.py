"""How many tokens a caption has for the text encoder that will read it: its tokenizer without its weights.

length = load("t5:google/t5-v1_1-xxl")
length.limit, length.count(["a red circle moves left"])         (256, [6])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recaption import hub
from recaption.caption_gates import TextLength
from recaption.captioners import Captioner
from recaption.errors import UsageError
from train.text_encoder import MAX_TEXT_TOKENS


def load(spec: str, *, max_tokens: int = 0, captioner: Captioner | None = None, captioner_spec: str = "") -> TextLength:
    """Lengths for a text encoder as `text_encoder.load` takes it.

    Args:
        max_tokens: limit in place of the encoder's own; 0 = its own.
        captioner: one that is already here, opened from `captioner_spec`.

    Raises:
        UsageError: no such text encoder, or none whose tokens can be counted.
        WeightsUnreachableError: its tokenizer cannot be had.
    """
    kind, _, name = spec.partition(":")
    if kind == "captioner" and name:
        from recaption.captioners import load_captioner

        tower = (captioner if captioner is not None and name == captioner_spec else load_captioner(name)).text_tower
        return TextLength(max_tokens or tower.max_tokens, tower.count_tokens)
    if kind == "t5" and name:
        tokenizer = _tokenizer(name)

        def count(texts: Sequence[str]) -> list[int]:
            return [len(ids) for ids in tokenizer(list(texts))["input_ids"]]

        return TextLength(max_tokens or MAX_TEXT_TOKENS, count)
    raise UsageError(f"unknown text encoder {spec!r}: use captioner:tiny, captioner:SPEC or t5:ID (or t5:FOLDER)")


def _tokenizer(model_id: str) -> Any:
    from transformers import AutoTokenizer

    what, give = f"the tokenizer of t5:{model_id}", "give a folder with the tokenizer as t5:FOLDER"
    local_only = hub.is_on_disk(model_id, what=what, give=give)
    try:
        return AutoTokenizer.from_pretrained(model_id, local_files_only=local_only)
    except (OSError, ValueError) as error:
        raise hub.unreachable(what, error, give) from error
