"""Captioning: the captions of the tiny captioner against the CPU's, and the speed of a CoCa with random weights."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch
from table import NOT_HERE, RIGHT, WRONG, Check, Row

from recaption.captioners.registry import load_captioner
from recaption.errors import WeightsUnreachableError

LARGE = "open_clip:coca_ViT-L-14/random"


def run(check: Check) -> None:
    import_module("open_clip")  # missing: a row that says so
    check.one("captions of tiny as on a CPU", lambda: _captions(check))
    if check.size.is_small:
        check.rows.append(Row(check=LARGE, status=NOT_HERE, note="too large for a check at a small size"))
    else:
        check.one(LARGE, lambda: _speed(check))


def _clips(count: int) -> list[np.ndarray]:
    from recaption.scenes.renderer import render

    return [render(seed, num_frames=17, height_px=64, width_px=96, fps=8).frames_THWC for seed in range(count)]


def _captions(check: Check) -> Row:
    clips = _clips(2 if check.size.is_small else 32)
    name = "captions of tiny as on a CPU"
    try:
        on_cpu = load_captioner("tiny", device="cpu", dtype=torch.float32).caption(clips)
    except WeightsUnreachableError as error:
        return Row(check=name, status=NOT_HERE, note=str(error))
    captioner = load_captioner("tiny", device=str(check.device), dtype=torch.float32)
    captions = captioner.caption(clips)
    seconds = check.seconds(lambda: captioner.caption(clips))
    num_same = sum(one.text == other.text for one, other in zip(on_cpu, captions, strict=True))
    tokens = sum(caption.num_tokens for caption in captions)
    return Row(
        check=name,
        status=RIGHT if num_same >= 0.9 * len(clips) else WRONG,
        tokens_per_second=tokens / seconds,
        peak_bytes=check.peak_bytes(),
        note=f"{num_same} of {len(clips)} captions are the same, {len(clips) / seconds:.1f} clips/s; "
        f"'{captions[0].text[:60]}'",
    )


def _speed(check: Check) -> Row:
    clips = _clips(64)
    captioner = load_captioner(LARGE, device=str(check.device), dtype=torch.bfloat16)
    captions = captioner.caption(clips)
    seconds = check.seconds(lambda: captioner.caption(clips))
    is_right = all(np.isfinite(caption.mean_logprob) for caption in captions)
    return Row(
        check=f"{LARGE}, bf16",
        status=RIGHT if is_right else WRONG,
        tokens_per_second=sum(caption.num_tokens for caption in captions) / seconds,
        peak_bytes=check.peak_bytes(),
        note=f"{len(clips) / seconds:.1f} clips/s, decoding not included",
    )
