"""Frame conditioning in training: which latent frames of a clip enter the transformer clean (t = 0).

    weights = parse_conditions(("none=0.7", "first=0.1", "prefix=0.2"))
    sample_frame_mask(weights, 5, seed, epoch, clip_id)              # tensor([True, True, False, False, False])
    condition_mask_L = sample_condition_mask(weights, clip_ids, segments, position_L3, frames_S, key=(seed, epoch))

Conditioning tokens are passed in clean, with a learned embedding added, and excluded from the loss; all other tokens are
noised as usual. Each kind of mask trains for some kinds of prompt:

    first      the first frame                   image to video
    prefix     frames from the start             extending a video (and videos longer than trained)
    suffix     frames up to the end              extending a video backward
    both_ends  both                              connecting two videos, closing a loop
    keyframes  every n-th frame, from the first  keyframe interpolation
    random     any frames                        any of these, less well than by its own kind

Shape suffixes: L tokens of a pack, S clips of a pack, T token frames of a clip.

After the mask ratios of Open-Sora and the masked context of Video LDM (arXiv 2304.08818).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from recaption.captions.mixture import parse_weights
from recaption.errors import UsageError
from train.diffusion.rng import seeded_generator
from train.layers.segments import Segments
from train.parallel.transfer import copied

CONDITIONS = ("none", "first", "prefix", "suffix", "both_ends", "keyframes", "random")
DEFAULT_CONDITIONS = (
    "none=0.6", "first=0.1", "prefix=0.12", "suffix=0.04", "both_ends=0.06", "keyframes=0.04", "random=0.04",
)  # fmt: skip
"""The mix of the recipes `small` and `base`: most clips from text alone, the rest weighted by how common the prompts are."""
CONDITIONS_OF_MODE = {
    "image": ("first", "prefix", "random"),
    "extend": ("prefix", "random"),
    "extend-back": ("suffix", "random"),
    "connect": ("both_ends", "random"),
    "loop": ("both_ends", "random"),
    "inbetween": ("keyframes", "random"),
    "long keyframes": ("keyframes", "random"),
}
"""Mode of a prompt -> the conditions, any of which trains it; `long keyframes`: takes by key frames. The modes text and edit
need none."""


def parse_conditions(mix: Iterable[str]) -> dict[str, float]:
    """Kind -> fraction of clips, as `parse_weights`; {} for no frame conditioning."""
    return parse_weights(mix, what="condition", kinds=CONDITIONS)


def is_trained_for(mode: str, mix: Iterable[str]) -> bool:
    """Whether a model trained with this mix supports prompts of this mode."""
    trained = parse_conditions(mix)
    return mode not in CONDITIONS_OF_MODE or any(kind in trained for kind in CONDITIONS_OF_MODE[mode])


def check_trained_for(mode: str, mix: Iterable[str], checkpoint_path: str = "this model") -> None:
    """Raises UsageError, naming the setting to train with, where the model does not support the mode."""
    mix = tuple(mix)
    if not is_trained_for(mode, mix):
        kind = CONDITIONS_OF_MODE[mode][0]
        raise UsageError(
            f"{checkpoint_path} was not trained for {mode} prompts (its conditions: {' '.join(mix) or 'none'}): train it "
            f"with --train-dit.dit.conditions none=0.7 {kind}=0.3, or the mix of the recipe `small`"
        )


def sample_condition_mask(
    weights: Mapping[str, float],
    clip_ids: Sequence[str],
    segments: Segments,
    position_L3: Tensor,
    frames_S: Sequence[tuple[int, int]],
    *,
    key: Sequence[str | int],
) -> Tensor | None:
    """bool (L): the conditioning tokens, as a function of `key` and the clip ids alone; None without frame conditioning.

    Uses the positions of the tokens, so it works after token dropping. Images (one frame) are never conditioning.

    Args:
        frames_S: half-open span of frame positions of each clip, before token dropping.
        key: seeds the generator together with the clip id, for example (seed, epoch).
    """
    if not set(weights) - {"none"}:
        return None
    # One table of the frames of all clips, read at (first row of the clip + frame - first frame of the clip).
    masks, rows = [], []
    num_rows = 0
    for clip_id, (start, end) in zip(clip_ids, frames_S, strict=True):
        masks.append(sample_frame_mask(weights, end - start, *key, clip_id))
        rows.append(num_rows - start)
        num_rows += end - start
    device = position_L3.device
    table, row_S = copied(torch.cat(masks), device), copied(torch.tensor(rows), device)
    return table[row_S[segments.segment_ids_L] + position_L3[:, 0]]


def sample_frame_mask(weights: Mapping[str, float], num_frames: int, *key: str | int) -> Tensor:
    """bool (T): the conditioning frames of a clip; never all of them."""
    mask_T = torch.zeros(num_frames, dtype=torch.bool)
    generator = seeded_generator(*key, "condition")
    kind = _choose(weights, float(torch.rand((), generator=generator)))
    if num_frames < 2 or kind == "none":
        return mask_T

    def number(low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(torch.randint(low, max(low, high) + 1, (), generator=generator))

    if kind == "first":
        mask_T[0] = True
    elif kind == "prefix":
        mask_T[: number(1, num_frames - 1)] = True
    elif kind == "suffix":
        mask_T[num_frames - number(1, num_frames - 1) :] = True
    elif kind == "both_ends":
        gap_frames = number(1, num_frames - 2)
        start = number(1, num_frames - 1 - gap_frames)
        mask_T[:] = True
        mask_T[start : start + gap_frames] = False
    elif kind == "keyframes":
        mask_T[:: number(2, num_frames - 1)] = True
    else:
        mask_T = torch.rand(num_frames, generator=generator) < torch.rand((), generator=generator)
        mask_T[number(0, num_frames - 1)] = False
    return mask_T


def _choose(weights: Mapping[str, float], uniform: float) -> str:
    """The kind whose interval of the cumulative weights contains `uniform`."""
    cumulative = 0.0
    for kind, weight in weights.items():
        cumulative += weight
        if uniform < cumulative:
            return kind
    return list(weights)[-1]
