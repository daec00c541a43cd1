"""Sensitivity of a captioner to frame order: scenes with a directed action, captioned forwards and reversed.

    python tests/benchmarks/packing/bench_order.py                          # the captioner inside the package, 60 scenes
    python tests/benchmarks/packing/bench_order.py --captioner my_captioner --scenes 200

Prints the fraction of scenes that get another action phrase when reversed, and the fraction whose phrase becomes the
mirrored one (left / right, up / down, grows / shrinks); then the same for the same weights without their temporal
embedding, as `mean` pooling does: these must caption the reversed clip the same.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from recaption.captioners.registry import load_captioner
from recaption.scenes.captions import fields_in
from recaption.scenes.renderer import render

MIRRORED = (("left", "right"), ("up", "down"), ("grow", "shrink"), ("rise", "fall"), ("clockwise", "counter"))


def mirrored(action: str, other: str) -> bool:
    return any((a in action and b in other) or (b in action and a in other) for a, b in MIRRORED)


def directional(num_scenes: int) -> list[tuple[str, np.ndarray]]:
    found: list[tuple[str, np.ndarray]] = []
    seed = 2_000_000
    while len(found) < num_scenes:
        scene = render(seed, num_frames=25)
        if any(word in scene.fields.action for pair in MIRRORED for word in pair):
            found.append((scene.fields.action, scene.frames_THWC))
        seed += 1
    return found


def report(name: str, captioner: Any, scenes: list[tuple[str, np.ndarray]]) -> None:
    ahead = captioner.caption_with_embeddings([frames for _, frames in scenes])
    back = captioner.caption_with_embeddings([frames[::-1].copy() for _, frames in scenes])
    forwards, backwards = ([fields_in(one.text).action for one in told.captions] for told in (ahead, back))
    same_text = np.mean([a.text == b.text for a, b in zip(ahead.captions, back.captions, strict=True)])
    distance = float(np.mean(1 - (ahead.clip_embeddings_BD * back.clip_embeddings_BD).sum(axis=1)))
    pairs = list(zip(forwards, backwards, strict=True))
    right = np.mean([action == truth for action, (truth, _) in zip(forwards, scenes, strict=True)])
    other = np.mean([a != b for a, b in pairs])
    turned = np.mean([mirrored(a, b) for a, b in pairs])
    print(
        f"{name:28} right {right:5.2f}   reversed: other action {other:5.2f}   mirrored {turned:5.2f}   "
        f"same caption {same_text:5.2f}   embeddings apart {distance:.5f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captioner", default="tiny")
    parser.add_argument("--scenes", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    captioner: Any = load_captioner(arguments.captioner)
    scenes = directional(arguments.scenes)
    report(arguments.captioner, captioner, scenes)
    with torch.no_grad():
        captioner.model.clip_encoder.temporal_embedding.zero_()
    report("without temporal embedding", captioner, scenes)


if __name__ == "__main__":
    main()
