"""Loads Hugging Face transformers models strictly.

    model = open_model(AutoModelForImageTextToText, "org/model", spec="vlm:org/model")

transformers initialises missing weights at random with a warning; here missing weights are an error.
"""

from __future__ import annotations

from typing import Any

from recaption import hub
from recaption.errors import CheckpointMismatchError, UsageError


def open_config(model_id_or_path: str, *, spec: str, supported: str, is_supported: Any) -> Any:
    """The config of a supported model from a hub id or local folder.

    Args:
        spec: SPEC of the captioner, for error messages.
        supported: description of the supported models, for error messages.
        is_supported: config -> bool.

    Raises:
        UsageError: unsupported architecture.
        WeightsUnreachableError: no config found; raised within seconds.
    """
    from transformers import AutoConfig

    is_local = hub.is_on_disk(model_id_or_path, what=f"captioner {spec}", hint=_hint(spec))
    try:
        config = AutoConfig.from_pretrained(model_id_or_path, local_files_only=is_local, trust_remote_code=False)
    except Exception as error:  # a damaged config makes transformers raise anything
        raise hub.loading_error(f"captioner {spec}", error, _hint(spec)) from error
    hub.check_sizes(config.to_dict(), what=f"captioner {spec}")
    if not is_supported(config):
        raise UsageError(
            f"captioner {spec}: a {config.model_type!r} model; {spec.partition(':')[0]}: supports {supported}"
        )
    return config


def open_model(model_class: Any, model_id_or_path: str, *, spec: str) -> Any:
    """A model in its stored precision, in eval mode, without gradients.

    Raises:
        CheckpointMismatchError: the weights do not match their config.
        WeightsUnreachableError: no weights found.
    """
    is_local = hub.is_on_disk(model_id_or_path, what=f"captioner {spec}", hint=_hint(spec))
    try:
        model, found = model_class.from_pretrained(
            model_id_or_path,
            local_files_only=is_local,
            dtype="auto",
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise hub.loading_error(f"captioner {spec}", error, _hint(spec)) from error
    except Exception as error:  # safetensors, torch and the model classes share no base exception
        raise CheckpointMismatchError(
            f"captioner {spec}: the weights do not fit their config: {hub.first_line(error)}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointMismatchError(
            f"captioner {spec}: the weights lack {len(missing)} tensors of the model, such as {missing[0]}"
        )
    return model.eval().requires_grad_(False)


def open_processor(processor_class: Any, model_id_or_path: str, *, spec: str) -> Any:
    """The model's tokenizer and image processor; raises as `open_model`."""
    is_local = hub.is_on_disk(model_id_or_path, what=f"captioner {spec}", hint=_hint(spec))
    try:
        return processor_class.from_pretrained(model_id_or_path, local_files_only=is_local, trust_remote_code=False)
    except ImportError as error:
        raise UsageError(f"captioner {spec}: {hub.first_line(error)} (pip install 'recaption[vlm]')") from error
    except Exception as error:  # tokenizers raises plain exceptions, damaged side files anything
        if "trust_remote_code" in str(error):
            raise hub.loading_error(f"captioner {spec}", error, _hint(spec)) from error
        raise UsageError(
            f"captioner {spec}: cannot load its tokenizer and image processor: {hub.first_line(error)}"
        ) from error


def check_tokenizer_size(tokenizer: Any, num_embeddings: int, *, spec: str) -> None:
    """Raises CheckpointMismatchError if the tokenizer has more tokens than the model has embeddings."""
    if len(tokenizer) > num_embeddings:
        raise CheckpointMismatchError(
            f"captioner {spec}: its tokenizer has {len(tokenizer)} tokens, its model {num_embeddings} "
            "embeddings: they do not belong together"
        )


def _hint(spec: str) -> str:
    return f"give a folder with config.json, the processor's files and the weights as {spec.partition(':')[0]}:FOLDER"
