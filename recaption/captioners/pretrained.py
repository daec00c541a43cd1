"""Weights of the transformers package: opened whole or not at all, and named by their hash.

    model = open_model(AutoModelForImageTextToText, "org/model", what="captioner vlm:org/model", give="give vlm:FOLDER")
    weights_hash(model)          # "3f9a0c1d22be"

transformers itself fills what a checkpoint lacks with random numbers and a warning; here that is an error.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from recaption import hub
from recaption.errors import CheckpointMismatchError, UsageError


def weights_hash(model: nn.Module) -> str:
    """First 12 hex digits of the sha256 over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def open_config(place: str, *, spec: str, takes: str, fits: Any) -> Any:
    """The config of a hub id or folder, of a model that `fits` says yes to.

    Args:
        spec: the captioner in the user's words.
        takes: which models would do, for the error.

    Raises:
        UsageError: another architecture.
        WeightsUnreachableError: nothing there, within seconds.
    """
    from transformers import AutoConfig

    is_local = hub.is_on_disk(place, what=f"captioner {spec}", give=_give(spec))
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=is_local)
    except (OSError, ValueError, KeyError) as error:
        raise hub.unreachable(f"captioner {spec}", error, _give(spec)) from error
    if not fits(config):
        raise UsageError(f"captioner {spec}: a {config.model_type!r} model; {spec.partition(':')[0]}: takes {takes}")
    return config


def open_model(model_class: Any, place: str, *, spec: str) -> Any:
    """A model in the precision it is stored in, in eval mode, without gradients.

    Raises:
        CheckpointMismatchError: the weights are not those of its own config.
        WeightsUnreachableError: no weights.
    """
    is_local = hub.is_on_disk(place, what=f"captioner {spec}", give=_give(spec))
    try:
        model, found = model_class.from_pretrained(
            place, local_files_only=is_local, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise hub.unreachable(f"captioner {spec}", error, _give(spec)) from error
    except RuntimeError as error:
        raise CheckpointMismatchError(
            f"captioner {spec}: the weights do not fit their config: {hub.first_line(error)}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointMismatchError(
            f"captioner {spec}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}"
        )
    return model.eval().requires_grad_(False)


def open_processor(processor_class: Any, place: str, *, spec: str) -> Any:
    """What turns pictures and words into the model's inputs; raises as `open_model`."""
    is_local = hub.is_on_disk(place, what=f"captioner {spec}", give=_give(spec))
    try:
        return processor_class.from_pretrained(place, local_files_only=is_local)
    except ImportError as error:
        raise UsageError(
            f"captioner {spec}: {hub.first_line(error)} (pip install 'recaption[vlm]' has what they want)"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"captioner {spec}: its tokenizer and image processor do not open: {hub.first_line(error)}"
        ) from error


def check_vocabulary(tokenizer: Any, num_embeddings: int, *, spec: str) -> None:
    """Raises CheckpointMismatchError where the tokenizer has words that the model has never seen."""
    if len(tokenizer) > num_embeddings:
        raise CheckpointMismatchError(
            f"captioner {spec}: its tokenizer has {len(tokenizer)} tokens, its model {num_embeddings}: "
            "they do not belong together"
        )


def _give(spec: str) -> str:
    return f"give a folder with config.json, the processor's files and the weights as {spec.partition(':')[0]}:FOLDER"
