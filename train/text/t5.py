"""T5, mT5 and UMT5 encoders (transformers) as text towers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recaption import hub
from recaption.errors import UsageError, WeightsUnreachableError
from recaption.weights import stored_tensors, weights_hash

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Whole, or in shards with an index, in the order in which transformers looks for them."""
MAX_TEXT_TOKENS = 256
"""T5 only: longer captions are truncated. CLIP and captioner towers have their own limits."""


class T5Encoder:
    """The encoder of a T5, mT5 or UMT5."""

    def __init__(self, model_id: str, device: torch.device | str = "cpu") -> None:
        config, encoder_class = t5_config(model_id)
        self.tokenizer = t5_tokenizer(model_id)
        what, remedy, local_only = _describe(model_id)
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        try:
            model = encoder_class.from_pretrained(
                model_id, local_files_only=local_only, dtype=dtype, trust_remote_code=False
            )
            self.weights_hash = weights_hash(stored_tensors(_weight_files(model_id)))
        except WeightsUnreachableError:
            raise
        except Exception as error:  # transformers, safetensors and pickle share no base exception
            raise hub.unreachable_error(what, error, remedy) from error
        self.model = model.to(device, dtype).eval().requires_grad_(False)
        self.device = device
        self.width = self.pooled_width = int(config.d_model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Last hidden states without padding; pooled = their mean."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt"
        ).to(self.device)
        states = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.float()
        mask = tokens.attention_mask.bool()
        pooled_SC = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return states[mask], mask.sum(1), pooled_SC


def _weight_files(model_id: str) -> list[Path]:
    """The files that transformers has just loaded: their tensors are the identity of the encoder, whatever the device.

    Raises:
        OSError: none of the names that transformers knows.
    """
    from transformers.utils import cached_file

    for name in WEIGHT_FILES:
        for candidate in (name, f"{name}.index.json"):
            found = cached_file(model_id, candidate, local_files_only=True, _raise_exceptions_for_missing_entries=False)
            if found is None:
                continue
            if candidate == name:
                return [Path(found)]
            shards = sorted(set(json.loads(Path(found).read_text())["weight_map"].values()))
            return [Path(str(cached_file(model_id, shard, local_files_only=True))) for shard in shards]
    raise OSError(f"{model_id} has none of {', '.join(WEIGHT_FILES)}")


def t5_config(model_id: str) -> tuple[Any, Any]:
    """(config, encoder class), without weights. Raises as `load_tower`."""
    import transformers

    what, remedy, local_only = _describe(model_id)
    try:
        config = transformers.AutoConfig.from_pretrained(model_id, local_files_only=local_only, trust_remote_code=False)
    except Exception as error:  # damaged files make transformers and tokenizers raise anything
        raise hub.loading_error(what, error, remedy) from error
    classes = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    if config.model_type not in classes:
        raise UsageError(f"{model_id} is a {config.model_type!r} model; t5: takes {', '.join(classes)}")
    return config, getattr(transformers, classes[config.model_type])


def t5_tokenizer(model_id: str) -> Any:
    from transformers import AutoTokenizer

    _, remedy, local_only = _describe(model_id)
    try:
        return AutoTokenizer.from_pretrained(model_id, local_files_only=local_only, trust_remote_code=False)
    except Exception as error:  # damaged files make transformers and tokenizers raise anything
        raise hub.loading_error(f"the tokenizer of t5:{model_id}", error, remedy) from error


def _describe(model_id: str) -> tuple[str, str, bool]:
    """(name for messages, what to pass instead if unreachable, whether the files are on disk)."""
    what = f"text encoder t5:{model_id}"
    remedy = "give a folder with config.json, the tokenizer and model.safetensors as t5:FOLDER"
    return what, remedy, hub.is_on_disk(model_id, what=what, hint=remedy)
