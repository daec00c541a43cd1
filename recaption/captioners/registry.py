"""Registry of captioners: `load_captioner` opens one from its SPEC.

captioner = load_captioner("tiny")
captions = captioner.caption([clip_THWC])          # uint8 (T, H, W, 3), any size
captioner.score([clip_THWC], ["a red circle moves left"])
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from recaption.captioners.interface import Captioner
from recaption.errors import UsageError, WeightsUnreachableError

if TYPE_CHECKING:
    import torch

    from recaption.chat_endpoint.endpoint import EndpointSettings


@dataclass(frozen=True)
class Backend:
    """One kind of captioner."""

    spec_format: str
    """Syntax of its SPEC."""
    location: str
    """What the SPEC refers to: `hub_or_folder` (a hub id or local folder), `folder` (a folder in this project's own format),
    `url`, or empty (checked by the factory)."""
    factory: str
    """`module:function` in this package, called with the SPEC after its colon and with `options`."""
    options: frozenset[str] = frozenset()
    """Settings that the factory accepts, of `prompt`, `num_frames` and `endpoint`."""


BACKENDS = {
    "tiny": Backend("tiny", "", "videococa.checkpoint:open_tiny"),
    "open_clip": Backend(
        "open_clip:MODEL/TAG[@DESIGN] | open_clip:MODEL//path/to/weights | open_clip:MODEL/random",
        "",
        "videococa.checkpoint:open_open_clip",
    ),
    "git": Backend("git:ID_OR_PATH", "hub_or_folder", "backends.git:open_git", frozenset({"prompt"})),
    "vlm": Backend("vlm:ID_OR_PATH", "hub_or_folder", "backends.vlm:open_vlm", frozenset({"prompt", "num_frames"})),
    "frozenbilm": Backend("frozenbilm:ID_OR_PATH", "hub_or_folder", "backends.frozenbilm:open_frozenbilm"),
    "mplug2": Backend("mplug2:PATH", "folder", "backends.mplug2:open_mplug2", frozenset({"prompt"})),
    "http": Backend(
        "http://HOST/v1#MODEL", "url", "backends.http:open_http", frozenset({"prompt", "num_frames", "endpoint"})
    ),
    "https": Backend(
        "https://HOST/v1#MODEL", "url", "backends.http:open_http", frozenset({"prompt", "num_frames", "endpoint"})
    ),
    "path": Backend("path of a checkpoint", "folder", "videococa.checkpoint:open_videococa"),
}
PLUGINS = "recaption.captioners"
"""Entry points of own captioners: `NAME = "package.module:factory"` makes the SPECs NAME and NAME:ANYTHING. The factory is
called as those of `BACKENDS`: `factory(rest, *, device, dtype, **options)`; its attribute `options` names those it takes."""
SPEC_FORMATS = " | ".join(backend.spec_format for backend in BACKENDS.values())
"""SPEC syntaxes that `load_captioner` accepts, for error messages."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@cache
def plugins() -> dict[str, EntryPoint]:
    """Name -> entry point of the installed captioners of others; names of our own backends are ours."""
    return {point.name: point for point in entry_points(group=PLUGINS) if point.name not in BACKENDS}


def _backend(kind: str) -> tuple[Backend, Callable[..., Captioner] | None]:
    """(the backend, its factory if that of a plug-in)."""
    if kind in BACKENDS:
        return BACKENDS[kind], None
    try:
        factory = plugins()[kind].load()
    except Exception as error:
        raise UsageError(
            f"the captioner plug-in {kind!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return Backend(f"{kind}[:...]", "", plugins()[kind].value, frozenset(getattr(factory, "options", ()))), factory


def check_spec(spec: str) -> None:
    """Check a SPEC without loading anything: fails fast, before workers start.

    Raises:
        UsageError: unknown kind of captioner, malformed SPEC, or a path that does not exist.
        WeightsUnreachableError: a weights file that does not exist.
    """
    kind, rest = _split(spec)
    backend, _ = _backend(kind)
    if backend.location == "url":
        from recaption.chat_endpoint.endpoint import split_spec

        split_spec(rest)
    elif kind == "open_clip":
        model, slash, pretrained = rest.partition("@")[0].partition("/")
        if not (model and slash and pretrained):
            raise UsageError(
                f"captioner {spec!r} names no weights; write open_clip:MODEL/TAG (available: {SPEC_FORMATS})"
            )
        if os.path.isabs(pretrained) and not os.path.isfile(pretrained):
            raise WeightsUnreachableError(f"captioner {spec!r}: there is no file {pretrained}")
    elif backend.location == "folder" and not os.path.isdir(rest):
        raise UsageError(f"captioner {spec!r}: there is no folder {rest!r}; write {backend.spec_format}")
    elif backend.location == "hub_or_folder" and not os.path.isdir(rest) and not HUB_ID.fullmatch(rest):
        raise UsageError(f"captioner {spec!r}: no folder {rest!r}, and it is not a hub id; write {backend.spec_format}")


def is_remote(spec: str) -> bool:
    """Whether the captioner's model runs behind an HTTP endpoint, so that it needs no GPU here."""
    return _backend(_split(spec)[0])[0].location == "url"


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
    """Load a captioner from its SPEC.

    Args:
        spec: one of `SPEC_FORMATS`. With two slashes the part after the first is an absolute path.
        dtype: of the weights; None = float32, but bfloat16 for a `vlm:` on a GPU.
        scorer: SPEC of a second captioner that computes clip scores and embeddings, for one without contrastive head.
        prompt: instruction of an instruction-following captioner; empty = its default.
        num_frames: frames per clip for such a captioner; 0 = its default.
        endpoint: settings of the HTTP endpoint.

    Raises:
        UsageError: no such captioner, or an option that it does not support.
        WeightsUnreachableError: its weights are neither local nor downloadable; the message names the file.
    """
    check_spec(spec)
    kind, rest = _split(spec)
    backend, factory = _backend(kind)
    options = {"prompt": prompt, "num_frames": num_frames, "endpoint": endpoint}
    for name in ("prompt", "num_frames"):
        if options[name] and name not in backend.options:
            raise UsageError(f"captioner {spec!r} takes no {name.replace('_', '-')}")
    if factory is None:
        module, _, function = backend.factory.partition(":")
        factory = getattr(import_module(f"recaption.captioners.{module}"), function)
    supported = {name: options[name] for name in sorted(backend.options)}
    captioner: Captioner = factory(rest, device=device, dtype=dtype, **supported)
    if not scorer:
        return captioner
    from recaption.captioners.external_scorer import CaptionerWithScorer

    return CaptionerWithScorer(captioner, load_captioner(scorer, device=device, dtype=dtype))


def _split(spec: str) -> tuple[str, str]:
    """(kind, rest of the SPEC). A SPEC without a known kind is the path of a checkpoint, if that folder exists."""
    kind, colon, rest = spec.partition(":")
    if spec == "tiny":
        return "tiny", ""
    if kind in ("http", "https"):
        return kind, spec
    if kind in BACKENDS and kind not in ("tiny", "path") and colon and rest:
        return kind, rest
    if os.path.isdir(spec):
        return "path", spec
    if kind in plugins():
        return kind, rest
    formats = " | ".join([SPEC_FORMATS, *plugins()])
    raise UsageError(f"there is no captioner {spec!r}; available: {formats}")


PRECISIONS = ("auto", "fp32", "bf16")


def load_captioner_with_precision(spec: str, *, device: str, precision: str = "auto", **settings: Any) -> Captioner:
    """`load_captioner` with a named precision; `settings` are its other arguments.

    Raises:
        UsageError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"{precision = } is not one of {', '.join(PRECISIONS)}")
    return load_captioner(spec, device=device, dtype=_dtype(device, precision), **settings)


def _dtype(device: str, precision: str) -> torch.dtype | None:
    import torch

    if precision == "auto":
        return torch.bfloat16 if device.startswith("cuda") else None
    return torch.float32 if precision == "fp32" else torch.bfloat16
