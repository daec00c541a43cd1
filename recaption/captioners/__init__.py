"""Captioners: clips in, captions out. One interface, several models.

from recaption.captioners import load_captioner

captioner = load_captioner("tiny")
captions = captioner.caption([clip_THWC])          # uint8 (T, H, W, 3), any size
captioner.score([clip_THWC], ["a red circle moves left"])
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from recaption.errors import UsageError, WeightsUnreachableError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from recaption.chat_endpoint import EndpointSettings
    from recaption.records import Caption

TINY_FOLDER = Path(__file__).parent / "tiny"


class TextTower(Protocol):
    """The text side of a captioner, by itself."""

    width: int
    pooled_width: int
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """text_MD float32 (tokens of all texts one after another), lengths_S int64, pooled_SD float32."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Of each whole text; what exceeds `max_tokens` is cut by `encode`."""
        ...


@dataclass(frozen=True)
class Described:
    """Captions of B clips, and where clips and captions lie in the captioner's contrastive space."""

    captions: list[Caption]
    clip_BD: np.ndarray | None
    """float32, unit length; None from a captioner without contrastive space."""
    text_BD: np.ndarray | None
    """float32, unit length: of the captions. `clip_BD @ text_BD.T` is what `score` returns for them."""


class Captioner(Protocol):
    """A model that describes clips."""

    name: str
    weights_hash: str
    """First 12 hex digits of the weights' sha256."""
    num_frames: int
    """Frames it looks at; clips may be given with more (sampled evenly) or fewer."""
    frame_px: int
    """Side of the square it looks at; larger frames are only more work to read."""
    max_tokens: int
    """Most tokens of a caption."""
    kinds: tuple[str, ...]
    """Of `captions.KINDS`, those that it can be asked for; `descriptive` at least."""
    num_beams: int
    """Beams that it searches where it is asked for no number and with no temperature; 1 is greedy."""
    can_score: bool
    """Whether it has a contrastive space; without one, `score` and the embeddings raise `UsageError`."""
    min_clip_score: float | None
    """Below this its captions are rather wrong than right, by its own calibration; None where it has none."""

    def least_scores(self, clip_BD: np.ndarray) -> np.ndarray | None:
        """The same for clips that lie there, (B,): one that the captioner knows nothing like may need more."""
        ...

    @property
    def text_tower(self) -> TextTower:
        """Raises UsageError where there is none."""
        ...

    def caption(
        self,
        clips: Sequence[np.ndarray],
        *,
        kind: str = "descriptive",
        max_tokens: int | None = None,
        num_beams: int = 0,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> list[Caption]:
        """One caption per clip; `reason` is set on those that fail a gate. With a temperature, words are drawn."""
        ...

    def describe(
        self,
        clips: Sequence[np.ndarray],
        *,
        kind: str = "descriptive",
        max_tokens: int | None = None,
        num_beams: int = 0,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> Described:
        """`caption` with the embeddings of clips and captions; each clip is encoded once for all of it.

        Raises:
            UsageError: `kind` is not one of `kinds`.
        """
        ...

    def embed_clips(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Where clips lie in the contrastive space: (B, D) float32, unit length."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Where texts lie in it: (S, D) float32, unit length."""
        ...

    def score(self, clips: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Contrastive similarity (num_clips, num_texts)."""
        ...


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
    "tiny": Backend("tiny", "", "checkpoint:open_tiny"),
    "open_clip": Backend(
        "open_clip:MODEL/TAG[@DESIGN] | open_clip:MODEL//path/to/weights | open_clip:MODEL/random",
        "",
        "checkpoint:open_open_clip",
    ),
    "git": Backend("git:ID_OR_PATH", "folder", "git_captioner:open_git", frozenset({"prompt"})),
    "vlm": Backend("vlm:ID_OR_PATH", "folder", "vlm_captioner:open_vlm", frozenset({"prompt", "num_frames"})),
    "frozenbilm": Backend("frozenbilm:ID_OR_PATH", "folder", "frozenbilm_captioner:open_frozenbilm"),
    "mplug2": Backend("mplug2:PATH", "own", "mplug2_captioner:open_mplug2", frozenset({"prompt"})),
    "http": Backend(
        "http://HOST/v1#MODEL", "address", "http_captioner:open_http", frozenset({"prompt", "num_frames", "endpoint"})
    ),
    "https": Backend(
        "https://HOST/v1#MODEL", "address", "http_captioner:open_http", frozenset({"prompt", "num_frames", "endpoint"})
    ),
    "path": Backend("path of a checkpoint", "own", "checkpoint:open_videococa"),
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
    from recaption.captioners.scored import ScoredCaptioner

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
