"""Captioners: clips in, captions out. One interface, several models.

from recaption.captioners import load_captioner

captioner = load_captioner("tiny")
captions = captioner.caption([clip_THWC])          # uint8 (T, H, W, 3), any size
captioner.score([clip_THWC], ["a red circle moves left"])
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from recaption.captioners.interface import Captioner
from recaption.errors import UsageError, WeightsUnreachableError

if TYPE_CHECKING:
    import torch

    from recaption.chat_endpoint import EndpointSettings


@dataclass(frozen=True)
class Backend:
    """One kind of captioner that `load_captioner` opens."""

    form: str
    """How its SPEC is written."""
    place: str
    """`folder`: a hub id or a folder follows; `own`: a folder of our format; `address`; or empty: checked elsewhere."""
    opener: str
    """`module:function` in this package, called with what follows the colon and with the settings it takes."""
    takes: frozenset[str] = frozenset()
    """Of `prompt`, `num_frames` and `endpoint`."""


BACKENDS = {
    "tiny": Backend("tiny", "", "videococa.checkpoint:open_tiny"),
    "open_clip": Backend(
        "open_clip:MODEL/TAG[@DESIGN] | open_clip:MODEL//path/to/weights | open_clip:MODEL/random",
        "",
        "videococa.checkpoint:open_open_clip",
    ),
    "git": Backend("git:ID_OR_PATH", "folder", "backends.git:open_git", frozenset({"prompt"})),
    "vlm": Backend("vlm:ID_OR_PATH", "folder", "backends.vlm:open_vlm", frozenset({"prompt", "num_frames"})),
    "frozenbilm": Backend("frozenbilm:ID_OR_PATH", "folder", "backends.frozenbilm:open_frozenbilm"),
    "mplug2": Backend("mplug2:PATH", "own", "backends.mplug2:open_mplug2", frozenset({"prompt"})),
    "http": Backend(
        "http://HOST/v1#MODEL", "address", "backends.http:open_http", frozenset({"prompt", "num_frames", "endpoint"})
    ),
    "https": Backend(
        "https://HOST/v1#MODEL", "address", "backends.http:open_http", frozenset({"prompt", "num_frames", "endpoint"})
    ),
    "path": Backend("path of a checkpoint", "own", "videococa.checkpoint:open_videococa"),
}


SPECS = " | ".join(backend.form for backend in BACKENDS.values())
"""What `load_captioner` accepts, for messages."""


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_spec(spec: str) -> None:
    """Find in a moment, without opening anything, what no worker could open: to be asked before workers are started.

    Raises:
        UsageError: no such kind of captioner, not of its form, or a path where nothing is.
    """
    kind, rest = _split(spec)
    backend = BACKENDS[kind]
    if backend.place == "address":
        from recaption.chat_endpoint import split_spec

        split_spec(rest)
    elif kind == "open_clip":
        model, slash, pretrained = rest.partition("@")[0].partition("/")
        if not (model and slash and pretrained):
            raise UsageError(f"captioner {spec!r} names no weights; write open_clip:MODEL/TAG (available: {SPECS})")
        if os.path.isabs(pretrained) and not os.path.isfile(pretrained):
            raise WeightsUnreachableError(f"captioner {spec!r}: there is no file {pretrained}")
    elif backend.place == "own" and not os.path.isdir(rest):
        raise UsageError(f"captioner {spec!r}: there is no folder {rest!r}; write {backend.form}")
    elif backend.place == "folder" and not os.path.isdir(rest) and not HUB_ID.fullmatch(rest):
        raise UsageError(f"captioner {spec!r}: there is no folder {rest!r}, and it is no hub id; write {backend.form}")


def runs_elsewhere(spec: str) -> bool:
    """Whether the captioner's model is not in the process that opens it, so that it needs no GPU here."""
    return BACKENDS[_split(spec)[0]].place == "address"


def load_captioner(
    spec: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    scorer: str = "",
    prompt: str = "",
    num_frames: int = 0,
    endpoint: EndpointSettings | None = None,
) -> Captioner:
    """Open a captioner.

    Args:
        spec: one of `SPECS`. With two slashes the part after the first is an absolute path.
        dtype: of the weights; where None float32, of a `vlm:` on a GPU bfloat16.
        scorer: SPEC of a second captioner that gives clip scores and embeddings, for one that has none.
        prompt: what a captioner that is asked in words is asked; its own question where empty.
        num_frames: how many frames such a captioner is shown; its own number where 0.
        endpoint: how an HTTP endpoint is asked.

    Raises:
        UsageError: no such captioner, or a setting that it has no use for.
        WeightsUnreachableError: its weights are neither here nor downloadable; the message names the file.
    """
    check_spec(spec)
    kind, rest = _split(spec)
    backend = BACKENDS[kind]
    given = {"prompt": prompt, "num_frames": num_frames}
    for name, value in given.items():
        if value and name not in backend.takes:
            raise UsageError(f"captioner {spec!r} takes no {name.replace('_', '-')}")
    settings = {**given, "endpoint": endpoint}
    module, _, function = backend.opener.partition(":")
    opener = getattr(import_module(f"recaption.captioners.{module}"), function)
    taken = {name: settings[name] for name in sorted(backend.takes)}
    captioner: Captioner = opener(rest, device=device, dtype=dtype, **taken)
    if not scorer:
        return captioner
    from recaption.captioners.external_scorer import ScoredCaptioner

    return ScoredCaptioner(captioner, load_captioner(scorer, device=device, dtype=dtype))


def _split(spec: str) -> tuple[str, str]:
    """(kind, what its opener is given). A SPEC without known kind is the path of a checkpoint, where there is one."""
    kind, colon, rest = spec.partition(":")
    if spec == "tiny":
        return "tiny", ""
    if kind in ("http", "https"):
        return kind, spec
    if kind in BACKENDS and kind not in ("tiny", "path") and colon and rest:
        return kind, rest
    if os.path.isdir(spec):
        return "path", spec
    raise UsageError(f"there is no captioner {spec!r}; available: {SPECS}")


PRECISIONS = ("auto", "fp32", "bf16", "int8")


def open_captioner(spec: str, *, device: str, precision: str = "auto", **settings: Any) -> Captioner:
    """`load_captioner` in a precision; `settings` are its other ones.

    Raises:
        UsageError: no such precision, or int8 where there is none: on a GPU, or for a captioner of another kind.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"{precision = } is not one of {', '.join(PRECISIONS)}")
    if precision == "int8" and device != "cpu":
        raise UsageError("int8 decoding is for CPUs; on a GPU take bf16")
    captioner = load_captioner(spec, device=device, dtype=_dtype(device, precision), **settings)
    if precision == "int8":
        if not hasattr(captioner, "quantise"):
            raise UsageError(f"captioner {captioner.name} has no int8 decoding")
        captioner.quantise()
    return captioner


def _dtype(device: str, precision: str) -> torch.dtype | None:
    import torch

    if precision == "auto":
        return torch.bfloat16 if device.startswith("cuda") else None
    return torch.float32 if precision == "fp32" else torch.bfloat16
