"""Given frames: which latent frames of a clip the transformer is shown clean, so that it learns to go on from them.

    shares = parse_conditions(("none=0.7", "first=0.1", "head=0.2"))
    draw_frames(shares, 5, seed, epoch, clip_id)                           # tensor([True, True, False, False, False])
    given_L = draw_given(shares, clip_ids, segments, position_L3, frames_S, key=(seed, epoch))

A given token enters the transformer as it is in the clip, with a learned mark, and nothing is learned on it; all the
others are noised as ever. What the model can be asked for afterwards is what it met here:

    first      the first frame                    an image that is to move
    head       frames from the start              a video that is to go on (and videos longer than trained)
    tail       frames up to the end               a video that is to be led up to
    ends       both                               two videos to connect, a loop to close
    keyframes  every n-th frame, from the first   pictures to fill the time between
    random     any frames                         any of these, less well than its own kind

Shape suffixes: L tokens of a row, S clips of a row, T token frames of a clip.

After the mask ratios of Open-Sora and the masked context of Video LDM (arXiv 2304.08818).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from recaption.captions.mixture import parse_weights
from recaption.errors import UsageError
from train.diffusion.rng import generator_for
from train.layers.segments import Segments

CONDITIONS = ("none", "first", "head", "tail", "ends", "keyframes", "random")


DEFAULT_MIX = ("none=0.6", "first=0.1", "head=0.12", "tail=0.04", "ends=0.06", "keyframes=0.04", "random=0.04")
"""What the recipes with conditions train: most clips from text alone, of the rest mostly what prompts ask for."""


NEEDED = {
    "image": ("first", "head", "random"),
    "extend": ("head", "random"),
    "extend-back": ("tail", "random"),
    "connect": ("ends", "random"),
    "loop": ("ends", "random"),
    "inbetween": ("keyframes", "random"),
}
"""Kind of prompt -> the conditions, any of which teaches it. Text and edits need none."""


def parse_conditions(mix: Iterable[str]) -> dict[str, float]:
    """Kind -> share, as `parse_weights`. Nothing given: {}, nothing is conditioned."""
    return parse_weights(mix, what="condition", kinds=CONDITIONS)


def is_trained_for(mode: str, mix: Iterable[str]) -> bool:
    """Whether a model trained with this mix can be asked for this kind of prompt."""
    trained = parse_conditions(mix)
    return mode not in NEEDED or any(kind in trained for kind in NEEDED[mode])


def check_trained_for(mode: str, mix: Iterable[str], checkpoint_path: str = "this model") -> None:
    """Raises UsageError, with the setting that trains it, where it cannot."""
    mix = tuple(mix)
    if not is_trained_for(mode, mix):
        kind = NEEDED[mode][0]
        raise UsageError(
            f"{checkpoint_path} was not trained for {mode} prompts (its conditions: {' '.join(mix) or 'none'}): train it "
            f"with --train-dit.dit.conditions none=0.7 {kind}=0.3, or the mix of the recipe `small`"
        )


def draw_given(
    shares: Mapping[str, float],
    clip_ids: Sequence[str],
    segments: Segments,
    position_L3: Tensor,
    frames_S: Sequence[tuple[int, int]],
    *,
    key: Sequence[str | int],
) -> Tensor | None:
    """bool (L): the tokens that are given; a function of `key` and the clips' ids alone. None where nothing ever is.

    Works from the positions, so that tokens may be missing. Images are never given.

    Args:
        frames_S: half-open span of positions that each clip's token frames have before any are dropped.
        key: what makes this visit of the clip its own, for example (seed, epoch).
    """
    if not set(shares) - {"none"}:
        return None
    given = []
    frames = position_L3[:, 0].split(list(segments.lengths))
    for clip_id, frame_L, (start, end) in zip(clip_ids, frames, frames_S, strict=True):
        given_T = draw_frames(shares, end - start, *key, clip_id)
        given.append(given_T.to(frame_L.device, non_blocking=True)[frame_L - start])
    return torch.cat(given)


def draw_frames(shares: Mapping[str, float], num_frames: int, *key: str | int) -> Tensor:
    """bool (T): the given frames of one visit of one clip; never all of them."""
    given_T = torch.zeros(num_frames, dtype=torch.bool)
    generator = generator_for(*key, "condition")
    kind = _choose(shares, float(torch.rand((), generator=generator)))
    if num_frames < 2 or kind == "none":
        return given_T

    def number(low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(torch.randint(low, max(low, high) + 1, (), generator=generator))

    if kind == "first":
        given_T[0] = True
    elif kind == "head":
        given_T[: number(1, num_frames - 1)] = True
    elif kind == "tail":
        given_T[num_frames - number(1, num_frames - 1) :] = True
    elif kind == "ends":
        open_frames = number(1, num_frames - 2)
        start = number(1, num_frames - 1 - open_frames)
        given_T[:] = True
        given_T[start : start + open_frames] = False
    elif kind == "keyframes":
        given_T[:: number(2, num_frames - 1)] = True
    else:
        given_T = torch.rand(num_frames, generator=generator) < torch.rand((), generator=generator)
        given_T[number(0, num_frames - 1)] = False
    return given_T


def _choose(shares: Mapping[str, float], drawn: float) -> str:
    """The kind whose span of the shares, in their order, holds `drawn`."""
    reached = 0.0
    for kind, share in shares.items():
        reached += share
        if drawn < reached:
            return kind
    return list(shares)[-1]
