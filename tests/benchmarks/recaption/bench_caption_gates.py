"""Which rule tells wrong captions? AUC of right captions against wrong ones, by each score that a gate could ask.

    RECAPTION_FIXTURES=FOLDER bench_caption_gates.py [--captioner tiny] [--scenes 120]

Right: the captioner's captions of rendered scenes that it was not trained on. Wrong: the same captions exchanged between the
scenes, and its captions of real clips (FOLDER/captions.jsonl), as far as it was not trained on such. Where FOLDER has texts
written by people, also those with their own clips against those with others. 0.5 is chance, 1.0 tells all. The last column
is the lowest limit that lets 99 of 100 right captions pass, and what share of the wrong ones it stops.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from recaption.captioners.gates import score_margins
from recaption.captioners.registry import load_captioner
from recaption.errors import VideoError
from recaption.scenes.renderer import render
from recaption.video_io.reader import probe, read_frames

FIRST_SEED = 910_000
"""Training draws its scenes from other seeds."""


def auc(right, wrong):
    right, wrong = np.asarray(right)[:, None], np.asarray(wrong)[None]
    return float((right > wrong).mean() + 0.5 * (right == wrong).mean())


def real_clips(folder, captioner):
    """(frames of each clip, what a person wrote about it)."""
    clips, texts = [], []
    for line in (folder / "captions.jsonl").read_text().splitlines():
        row = json.loads(line)
        path = folder / row.get("file", "")
        if not path.is_file() or path.suffix not in (".mp4", ".webm", ".mkv", ".mov", ".avi"):
            continue
        try:
            video = probe(str(path))
            count = min(captioner.num_frames, video.num_frames)
            indices = ((np.arange(count) + 0.5) * video.num_frames / count).astype(int)
            side = min(captioner.frame_px, video.width_px, video.height_px)
            clips.append(read_frames(str(path), indices, short_side_px=side).pixels_THWC)
            texts.append(row["captions"][0])
        except VideoError as error:
            print(f"left out: {error}")
    return clips, texts


def scores(clip_BD, text_BD, logprobs):
    names = [str(i) for i in range(len(clip_BD))]
    return {
        "clip score": (clip_BD * text_BD).sum(axis=1),
        "margin over other captions": score_margins(clip_BD @ text_BD.T, names),
        "mean log-probability": np.asarray(logprobs, float),
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--captioner", default="tiny")
    arguments.add_argument("--scenes", type=int, default=120)
    options = arguments.parse_args()
    captioner = load_captioner(options.captioner)
    scenes = [
        render(FIRST_SEED + seed, num_frames=17, height_px=96, width_px=96, fps=8).frames_THWC
        for seed in range(options.scenes)
    ]
    own = captioner.describe(scenes)
    logprobs = [caption.mean_logprob for caption in own.captions]
    right = scores(own.clip_BD, own.text_BD, logprobs)
    wrong = {"exchanged": scores(own.clip_BD, np.roll(own.text_BD, 7, axis=0), np.roll(logprobs, 7))}
    fixtures = Path(os.environ.get("RECAPTION_FIXTURES", "nowhere"))
    if (fixtures / "captions.jsonl").is_file():
        clips, texts = real_clips(fixtures, captioner)
        described = captioner.describe(clips)
        logprobs = [caption.mean_logprob for caption in described.captions]
        wrong["of real clips"] = scores(described.clip_BD, described.text_BD, logprobs)
        pairs = captioner.score(clips, texts)
        is_own = np.eye(len(pairs), dtype=bool)
        print(
            f"{len(clips)} texts by people: AUC of own against others' clips {auc(pairs[is_own], pairs[~is_own]):.3f}"
        )
    print(f"{captioner.name}, {len(scenes)} scenes")
    print(
        f"{'wrong captions':<16} {'rule':<28} {'right':>7} {'wrong':>7} {'AUC':>6}   limit at 99 % of the right: stopped"
    )
    for name, values in wrong.items():
        for rule, of_right in right.items():
            limit = float(np.quantile(of_right, 0.01))
            stopped = float((values[rule] < limit).mean())
            medians = f"{np.median(of_right):>7.3f} {np.median(values[rule]):>7.3f}"
            print(f"{name:<16} {rule:<28} {medians} {auc(of_right, values[rule]):>6.3f}   {limit:.3f}: {stopped:.0%}")


if __name__ == "__main__":
    main()
