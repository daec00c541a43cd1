"""Captions, clip-score AUC and CPU time of the `tiny` captioner on real videos with human captions.

    python tests/benchmarks/recaption/bench_tiny.py VIDEOS/captions.jsonl [--captioner SPEC] [--against SPEC]

captions.jsonl: one line per clip, {"file": path relative to it, "captions": [human captions]}. Prints every caption with
its clip score and mean log-probability; the AUC of matching against mismatched human captions (clips with equal captions
count once); and CPU milliseconds per clip, both captioners interleaved, minimum of three.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from recaption.captioners.registry import load_captioner
from recaption.video_io.reader import probe, read_frames
from train.captioner.evaluation import matched_auc

SHORT_SIDE_PX = 192
NUM_FRAMES = 8


def read_clips(path: Path) -> tuple[list[str], list[np.ndarray], list[str]]:
    names, clips, texts = [], [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        video = probe(path.parent / row["file"])
        indices = ((np.arange(NUM_FRAMES) + 0.5) * video.num_frames / NUM_FRAMES).astype(int)
        side = min(SHORT_SIDE_PX, video.width_px, video.height_px)
        names.append(row["file"])
        clips.append(read_frames(path.parent / row["file"], indices, short_side_px=side).pixels_THWC)
        texts.append(row["captions"][0].rstrip("."))
    return names, clips, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--captioner", default="tiny")
    parser.add_argument("--against", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, clips, texts = read_clips(arguments.captions)
    captioners = {spec: load_captioner(spec) for spec in (arguments.captioner, arguments.against) if spec}
    captioner = captioners[arguments.captioner]
    for name, caption in zip(names, captioner.caption(clips), strict=True):
        print(f"{caption.clip_score:5.2f} {caption.mean_logprob:6.2f}  {name}  {caption.text}")
    is_first = [texts.index(text) == row for row, text in enumerate(texts)]
    cosine = captioner.score(clips, texts)[np.ix_(is_first, is_first)]
    print(f"AUC of {sum(is_first)} clips with their human captions against mismatched ones: {matched_auc(cosine):.3f}")
    seconds: dict[str, list[float]] = {spec: [] for spec in captioners}
    for _ in range(3):
        for spec, opened in captioners.items():
            start = time.process_time()
            opened.caption_with_embeddings(clips)
            seconds[spec].append((time.process_time() - start) / len(clips))
    for spec, times in seconds.items():
        print(f"{1e3 * min(times):.0f} CPU ms per clip, without reading frames: {spec}")


if __name__ == "__main__":
    main()
