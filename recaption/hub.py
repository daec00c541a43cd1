"""Weights from the Hugging Face Hub: cached, downloadable, or an error within seconds.

    path = find_file("laion/CoCa-ViT-B-32-laion2B-s13B-b90k", FILES, what="open_clip:...", hint="give a local file: ...")
    is_local = is_on_disk("google/t5-v1_1-xl", what="text encoder t5:google/t5-v1_1-xl", hint="give a folder as t5:FOLDER")
    model = T5EncoderModel.from_pretrained("google/t5-v1_1-xl", local_files_only=is_local)

One small HEAD request checks the hub first: the client of huggingface_hub would retry for minutes.
"""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recaption.errors import WeightsUnreachableError

HUB_TIMEOUT_SECONDS = 4.0
"""Timeout of the HEAD request, name look-up included."""


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


def first_line(error: Exception) -> str:
    """First line of an error message: some libraries append pages to it."""
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def unavailable_reason(repository: str, file: str) -> str:
    """Why the hub does not offer this file, "" where it does; takes at most `HUB_TIMEOUT_SECONDS`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/{repository}/resolve/main/{file}", headers=build_hf_headers(), method="HEAD"
    )
    reasons: list[str] = []

    def send_request() -> None:
        try:
            with _opener().open(request, timeout=HUB_TIMEOUT_SECONDS):
                reasons.append("")
        except urllib.error.HTTPError as error:
            reasons.append(_reason_for_status(error.code))
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"the hub cannot be reached: {getattr(error, 'reason', error)}")

    thread = threading.Thread(target=send_request, daemon=True)  # the timeout of `open` does not cover name look-up
    thread.start()
    thread.join(HUB_TIMEOUT_SECONDS)
    return reasons[0] if reasons else f"the hub does not respond within {HUB_TIMEOUT_SECONDS:g} s"


def _reason_for_status(status: int) -> str:
    if 300 <= status < 400:
        return ""  # large files are redirected to other hosts
    if status in (401, 403):
        return f"the hub denies access ({status}): no such model, or one that needs HF_TOKEN"
    return NOT_FOUND if status == 404 else f"the hub responds with status {status}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Does not follow redirects: they would send the token to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


def _cached_file(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repository, file)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
