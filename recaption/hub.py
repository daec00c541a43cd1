"""Weights from the Hugging Face Hub: cached, downloadable, or an error within seconds.

    path = find_file("laion/CoCa-ViT-B-32-laion2B-s13B-b90k", FILES, what="open_clip:...", hint="give a local file: ...")
    is_local = is_on_disk("google/t5-v1_1-xl", what="text encoder t5:google/t5-v1_1-xl", hint="give a folder as t5:FOLDER")
    model = T5EncoderModel.from_pretrained("google/t5-v1_1-xl", local_files_only=is_local, trust_remote_code=False)

One HEAD request checks the hub first: downloads are tried again for minutes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recaption.errors import CheckpointMismatchError, RecaptionError, UsageError, WeightsUnreachableError

SIZE_WORDS = (
    "vocab_size",
    "num_tokens",
    "hidden",
    "width",
    "layers",
    "heads",
    "intermediate",
    "dim",
    "d_model",
    "d_ff",
)
"""Parts of the names under which configs hold the sizes of a model."""
MAX_SIZE = 2_000_000
"""Of a vocabulary, width or depth; the largest vocabularies have 0.3 million tokens."""
NOT_FOUND = "the hub does not have it"
"""The `unavailable_reason` of a file or repository that does not exist."""


def is_on_disk(model: str, *, what: str, hint: str, file: str = "config.json") -> bool:
    """True where `model` is a folder or in the hub's cache, False where the hub has it for download.

    Args:
        model: repository id on the hub, or a folder.
        what: the weights as the user named them, for the error message.
        hint: what the user can pass instead, for the error message.
        file: a file that the model must have.

    Raises:
        WeightsUnreachableError: neither; raised within seconds.
    """
    if os.path.isdir(model) or _cached_file(model, file):
        return True
    problem = unavailable_reason(model, file)
    if problem:
        raise unreachable_error(what, problem, hint)
    return False


def find_file(repository: str, files: Sequence[str], *, what: str, hint: str) -> Path:
    """The first of `files` that the cache or the hub has, downloaded if necessary; raises as `is_on_disk`."""
    for file in files:
        if cached := _cached_file(repository, file):
            return cached
    problem = NOT_FOUND
    for file in files:
        problem = unavailable_reason(repository, file)
        if problem == NOT_FOUND:
            continue
        if problem:
            break
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repository, file))
        except Exception as error:  # the hub's client raises whatever its network layer raises
            problem = f"{type(error).__name__}: {first_line(error)}"
            break
    raise unreachable_error(f"{what} ({files[0]} of {repository} on the Hugging Face hub)", problem, hint)


def unreachable_error(what: str, problem: str | Exception, hint: str) -> WeightsUnreachableError:
    """The error for weights that are neither on disk nor downloadable, as one sentence."""
    reason = first_line(problem) if isinstance(problem, Exception) else problem
    return WeightsUnreachableError(
        f"{what}: the weights are not complete on this machine and cannot be downloaded ({reason}); {hint}"
    )


def loading_error(what: str, error: Exception, hint: str) -> UsageError:
    """What a library raised while it opened a model's files, as one sentence.

    Code of model folders is never run, and nobody is asked whether it may be: every `from_pretrained` says
    `trust_remote_code=False`.
    """
    if isinstance(error, UsageError):
        return error
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{what}: its folder brings code of its own (auto_map in a config), which is never run here; "
            "use a model that transformers knows"
        )
    if isinstance(error, (OSError, ValueError, KeyError)):
        return unreachable_error(what, error, hint)
    return CheckpointMismatchError(f"{what}: its files are damaged, or of another model: {first_line(error)}")


@contextlib.contextmanager
def damaged_as_mismatch(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is a CheckpointMismatchError of one sentence: folders come from anywhere.

    Args:
        what: the file or folder, for the error message.
    """
    try:
        yield
    except RecaptionError:
        raise
    except Exception as error:  # json, safetensors, tokenizers and torch share no base exception
        raise CheckpointMismatchError(
            f"{what} is damaged, or not of this format: {type(error).__name__}: {first_line(error)}"
        ) from error


def check_sizes(config: Mapping[str, Any], *, what: str) -> None:
    """Raises CheckpointMismatchError where a config asks for more memory than any model needs, before it is asked for."""
    sizes: dict[str, Any] = dict(config)
    while sizes:
        name, value = sizes.popitem()
        if isinstance(value, Mapping):
            sizes |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif isinstance(value, int) and any(word in name for word in SIZE_WORDS) and abs(value) > MAX_SIZE:
            raise CheckpointMismatchError(f"{what}: {name} is {value}: no model is of that size")


def first_line(error: Exception) -> str:
    """First line of an error message: some libraries append pages to it."""
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def unavailable_reason(repository: str, file: str) -> str:
    """Why the hub does not offer this file, "" where it does: one HEAD request without retries, HF_HUB_ETAG_TIMEOUT."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except HFValidationError as error:
        return first_line(error)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            return f"the hub denies access ({status}): no such model, or one that needs HF_TOKEN"
        return NOT_FOUND if status == 404 else f"the hub responds with status {status}"
    except Exception as error:  # the hub's client raises whatever its network layer raises
        return f"the hub cannot be reached: {first_line(error)}"
    return ""


def _cached_file(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repository, file)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
