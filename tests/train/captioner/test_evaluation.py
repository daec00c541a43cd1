from __future__ import annotations

import numpy as np
import pytest

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captions.text import CAPTION_KINDS
from recaption.records import Caption
from train.captioner.clips import CaptionedClip
from train.captioner.evaluation import FIELDS, evaluate, held_out_clips
from train.captioner.scene_clips import FIRST_HELD_OUT_SEED, SceneClips


class Oracle:
    """Knows what is in the clips that it was made with; `wrong` kinds get the answers of other clips."""

    preprocessor = FramePreprocessor(frame_px=16, fit="squash")
    num_frames = 2
    kinds = CAPTION_KINDS

    def __init__(self, wrong=()):
        self.wrong, self.encoded = wrong, 0
        self.clips: list[CaptionedClip] = []

    def encode(self, pixels):
        self.encoded += len(pixels)
        return list(range(len(pixels)))

    def caption(self, seen, *, kind="descriptive", max_tokens=None):
        shift = kind in self.wrong
        return [Caption(text=self.clips[(i + shift) % len(seen)].captions[kind][0].capitalize()) for i in seen]

    def score(self, seen, texts):
        return np.eye(len(seen), len(texts), dtype=np.float32)


@pytest.fixture(scope="module")
def clips():
    return held_out_clips(SceneClips(held_out=True), 12, Oracle())


def test_held_out_clips_are_held_out(clips):
    assert [clip.clip_id for clip in clips[:2]] == [f"scene-{FIRST_HELD_OUT_SEED + n}" for n in (0, 1)]
    assert clips[0].pixels_THWC.shape == (2, 16, 16, 3)


def test_who_knows_everything_gets_full_marks(clips):
    oracle = Oracle()
    oracle.clips = clips
    found = evaluate(oracle, clips)
    assert found["cider_d"] == pytest.approx(10.0)
    assert found["short/cider_d"] == pytest.approx(10.0)
    assert all(found[f"accuracy/{field}"] == found[f"asked/{field}"] == 1.0 for field in FIELDS)
    assert found["retrieval/text"] == found["retrieval/clip_at_10"] == found["ended"] == 1.0
    assert oracle.encoded == len(clips)


def test_each_kind_is_measured_by_itself(clips):
    oracle = Oracle(wrong=("short", "colour"))
    oracle.clips = clips
    found = evaluate(oracle, clips)
    assert found["cider_d"] == pytest.approx(10.0)
    assert found["short/cider_d"] < 5
    colours = [clip.truth.colour for clip in clips]
    by_chance = np.mean([one == other for one, other in zip(colours, colours[1:] + colours[:1], strict=True)])
    assert found["asked/colour"] == pytest.approx(by_chance)
    assert found["asked/style"] == found["accuracy/colour"] == 1.0


def test_clips_of_unknown_truth_have_no_accuracy():
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    oracle = Oracle()
    oracle.clips = [
        CaptionedClip(clip_id=str(n), pixels_THWC=pixels, captions={"short": (text, "something else")})
        for n, text in enumerate(("a dog runs on the beach", "two men play chess"))
    ]
    oracle.caption = lambda seen, **_: [Caption(text=clip.captions["short"][0]) for clip in oracle.clips]
    found = evaluate(oracle, oracle.clips)
    assert found["bleu_1"] == pytest.approx(1.0)
    assert not [name for name in found if name.startswith(("accuracy/", "asked/", "short/"))]
