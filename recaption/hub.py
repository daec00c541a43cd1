"""Weights named by their id on the Hugging Face hub: in its cache on this disk, or to be downloaded, or an error in seconds.

    path = find_file("laion/CoCa-ViT-B-32-laion2B-s13B-b90k", FILES, what="open_clip:...", give="give a local file: ...")
    is_local = is_on_disk("google/t5-v1_1-xl", what="text encoder t5:google/t5-v1_1-xl", give="give a folder as t5:FOLDER")
    model = T5EncoderModel.from_pretrained("google/t5-v1_1-xl", local_files_only=is_local)

The hub is asked with one small request first: its own client would go on retrying for minutes.
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

PROBE_SECONDS = 4.0
"""A hub that leaves one small request unanswered this long is unreachable."""


NOT_THERE = "the hub does not have it"


def is_on_disk(model: str, *, what: str, give: str, file: str = "config.json") -> bool:
    """True where `model` is a folder or lies in the hub's cache, False where the hub offers it for download.

    Args:
        what: the weights in the user's words, for the error.
        give: what the user can give instead.
        file: that the model must have.

    Raises:
        WeightsUnreachableError: neither, within seconds.
    """
    if os.path.isdir(model) or _cached(model, file):
        return True
    problem = probe(model, file)
    if problem:
        raise unreachable(what, problem, give)
    return False


def find_file(repository: str, files: Sequence[str], *, what: str, give: str) -> Path:
    """The first of `files` that the cache or the hub has, downloaded where need be; raises as `is_on_disk`."""
    for file in files:
        if cached := _cached(repository, file):
            return cached
    problem = NOT_THERE
    for file in files:
        problem = probe(repository, file)
        if problem == NOT_THERE:
            continue
        if problem:
            break
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repository, file))
        except Exception as error:  # the hub's client passes on whatever its network layer raises
            problem = f"{type(error).__name__}: {first_line(error)}"
            break
    raise unreachable(f"{what} ({files[0]} of {repository} on the Hugging Face hub)", problem, give)


def unreachable(what: str, problem: str | Exception, give: str) -> WeightsUnreachableError:
    """The one sentence for weights that are neither on disk nor to be had."""
    reason = first_line(problem) if isinstance(problem, Exception) else problem
    return WeightsUnreachableError(
        f"{what}: the weights are not complete on this machine and cannot be downloaded ({reason}); {give}"
    )


def first_line(error: Exception) -> str:
    """What an error says, without the pages that some libraries add to it."""
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


def probe(repository: str, file: str) -> str:
    """ "" where the hub offers this file, else why not, within `PROBE_SECONDS` (name look-up included)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/{repository}/resolve/main/{file}", headers=build_hf_headers(), method="HEAD"
    )
    answer: list[str] = []

    def ask() -> None:
        try:
            with _opener().open(request, timeout=PROBE_SECONDS):
                answer.append("")
        except urllib.error.HTTPError as error:
            answer.append(_meaning(error.code))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(f"the hub cannot be reached: {getattr(error, 'reason', error)}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] if answer else f"the hub does not answer within {PROBE_SECONDS:g} s"


def _meaning(status: int) -> str:
    if 300 <= status < 400:
        return ""  # large files lie elsewhere
    if status in (401, 403):
        return f"the hub refuses ({status}): no such model, or one that needs HF_TOKEN"
    return NOT_THERE if status == 404 else f"the hub answers {status}"


class _Stay(urllib.request.HTTPRedirectHandler):
    """Redirects are not followed: they would carry the token to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Stay)


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
