"""AUC of right against wrong captions, for each score that a quality gate could use.

    RECAPTION_FIXTURES=FOLDER bench_caption_gates.py [--captioner tiny] [--scenes 120]

Right: captions of held-out rendered scenes. Wrong: the same captions swapped between scenes, and captions of real clips
(FOLDER/captions.jsonl), if the captioner was not trained on real clips. Where FOLDER has human captions, also those with
their own clips against those with others. 0.5 is chance, 1.0 separates perfectly. The last column is the threshold that 99
of 100 right captions pass, and the fraction of wrong ones that it stops.
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
"""Not among the seeds of the training scenes."""


def auc(right, wrong):
    right, wrong = np.asarray(right)[:, None], np.asarray(wrong)[None]
    return float((right > wrong).mean() + 0.5 * (right == wrong).mean())


def real_clips(folder, captioner):
    """Frames and human caption of each clip."""
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
            print(f"skipped: {error}")
    return clips, texts


def scores(clip_embeddings_BD, text_embeddings_BD, logprobs):
    names = [str(i) for i in range(len(clip_embeddings_BD))]
    return {
        "clip score": (clip_embeddings_BD * text_embeddings_BD).sum(axis=1),
        "margin over other captions": score_margins(clip_embeddings_BD @ text_embeddings_BD.T, names),
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
    described = captioner.caption_with_embeddings(scenes)
    logprobs = [caption.mean_logprob for caption in described.captions]
    right = scores(described.clip_embeddings_BD, described.text_embeddings_BD, logprobs)
    wrong = {
        "swapped": scores(
            described.clip_embeddings_BD, np.roll(described.text_embeddings_BD, 7, axis=0), np.roll(logprobs, 7)
        )
    }
    fixtures = Path(os.environ.get("RECAPTION_FIXTURES", "nowhere"))
    if (fixtures / "captions.jsonl").is_file():
        clips, texts = real_clips(fixtures, captioner)
        real = captioner.caption_with_embeddings(clips)
        logprobs = [caption.mean_logprob for caption in real.captions]
        wrong["of real clips"] = scores(real.clip_embeddings_BD, real.text_embeddings_BD, logprobs)
        pairs = captioner.score(clips, texts)
        is_own = np.eye(len(pairs), dtype=bool)
        print(
            f"{len(clips)} human captions: AUC with their own against other clips {auc(pairs[is_own], pairs[~is_own]):.3f}"
        )
    print(f"{captioner.name}, {len(scenes)} scenes")
    print(f"{'wrong captions':<16} {'rule':<28} {'right':>7} {'wrong':>7} {'AUC':>6}   threshold (99 % pass): stopped")
    for name, values in wrong.items():
        for rule, right_scores in right.items():
            threshold = float(np.quantile(right_scores, 0.01))
            stopped = float((values[rule] < threshold).mean())
            medians = f"{np.median(right_scores):>7.3f} {np.median(values[rule]):>7.3f}"
            print(
                f"{name:<16} {rule:<28} {medians} {auc(right_scores, values[rule]):>6.3f}   {threshold:.3f}: {stopped:.0%}"
            )


if __name__ == "__main__":
    main()
