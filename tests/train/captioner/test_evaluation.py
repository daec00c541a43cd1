from __future__ import annotations

import numpy as np
import pytest

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captions.text import CAPTION_KINDS
from recaption.records import Caption
from recaption.scenes.splits import FIRST_HELD_OUT_SEED
from train.captioner.clips import CaptionedClip
from train.captioner.evaluation import FIELDS, evaluate, held_out_clips
from train.captioner.scene_clips import SceneClips


class Oracle:
    """Captions `clips` correctly; kinds in `wrong` get the captions of other clips."""

    preprocessor = FramePreprocessor(frame_px=16, fit="squash")
    num_frames = 2
    kinds = CAPTION_KINDS

    def __init__(self, wrong=()):
        self.wrong, self.encoded = wrong, 0
        self.clips: list[CaptionedClip] = []

    def encode(self, pixels):
        self.encoded += len(pixels)
        return list(range(len(pixels)))

    def caption(self, encoded, *, kind="descriptive", max_tokens=None):
        shift = kind in self.wrong
        return [Caption(text=self.clips[(i + shift) % len(encoded)].captions[kind][0].capitalize()) for i in encoded]

    def score(self, encoded, texts):
        return np.eye(len(encoded), len(texts), dtype=np.float32)


@pytest.fixture(scope="module")
def clips():
    return held_out_clips(SceneClips(held_out=True), 12, Oracle())


def test_held_out_clips_are_held_out(clips):
    assert [clip.clip_id for clip in clips[:2]] == [f"scene-{FIRST_HELD_OUT_SEED + n}" for n in (0, 1)]
    assert clips[0].pixels_THWC.shape == (2, 16, 16, 3)


def test_perfect_captions_get_perfect_metrics(clips):
    oracle = Oracle()
    oracle.clips = clips
    metrics = evaluate(oracle, clips)
    assert metrics["cider_d"] == pytest.approx(10.0)
    assert metrics["short/cider_d"] == pytest.approx(10.0)
    assert all(metrics[f"accuracy/{field}"] == metrics[f"asked/{field}"] == 1.0 for field in FIELDS)
    assert metrics["retrieval/text"] == metrics["retrieval/clip_at_10"] == metrics["ended"] == 1.0
    assert oracle.encoded == len(clips)


def test_each_kind_is_evaluated_separately(clips):
    oracle = Oracle(wrong=("short", "colour"))
    oracle.clips = clips
    metrics = evaluate(oracle, clips)
    assert metrics["cider_d"] == pytest.approx(10.0)
    assert metrics["short/cider_d"] < 5
    colours = [clip.truth.colour for clip in clips]
    by_chance = np.mean([one == other for one, other in zip(colours, colours[1:] + colours[:1], strict=True)])
    assert metrics["asked/colour"] == pytest.approx(by_chance)
    assert metrics["asked/style"] == metrics["accuracy/colour"] == 1.0


def test_clips_without_ground_truth_have_no_accuracy():
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    oracle = Oracle()
    oracle.clips = [
        CaptionedClip(clip_id=str(n), pixels_THWC=pixels, captions={"short": (text, "something else")})
        for n, text in enumerate(("a dog runs on the beach", "two men play chess"))
    ]
    oracle.caption = lambda encoded, **_: [Caption(text=clip.captions["short"][0]) for clip in oracle.clips]
    metrics = evaluate(oracle, oracle.clips)
    assert metrics["bleu_1"] == pytest.approx(1.0)
    assert not [name for name in metrics if name.startswith(("accuracy/", "asked/", "short/"))]
