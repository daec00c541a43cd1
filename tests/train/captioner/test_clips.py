from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from recaption.captioners.preprocess import FramePreprocessor
from recaption.captioners.videococa.tokenizer import ClipTokenizer, train_tokenizer
from recaption.captions.text import CAPTION_KINDS
from recaption.errors import RecaptionError, UsageError, VideoError
from train.captioner.batches import CaptionBatches, encode_with_prefix
from train.captioner.clips import CaptionedClip, shuffled_index
from train.captioner.scene_clips import SceneClips, random_captions
from train.captioner.stages import TWO_STAGES, kinds_in, parse_stages, prefix_of, stage_at

PREPROCESSOR = FramePreprocessor(frame_px=8, fit="squash")


class NumberClips:
    """Clip n has brightness n everywhere; clips in `broken` cannot be read."""

    kinds = ("descriptive", "short", "colour")
    fields = ""

    def __init__(self, num_clips=10, *, broken=(), name="numbers", captions=None):
        self.num_clips, self.broken, self.name = num_clips, broken, name
        self.captions = captions or (lambda n: {"descriptive": (f"clip number {n} is here",), "short": (f"clip {n}",)})

    def clip(self, number, preprocessor, *, num_frames, epoch=0):
        if number in self.broken:
            raise VideoError("truncated", "it ends early", uri=str(number))
        pixels = np.full((num_frames, preprocessor.frame_px, preprocessor.frame_px, 3), number, np.uint8)
        return CaptionedClip(clip_id=f"{number}-{epoch}", pixels_THWC=pixels, captions=self.captions(number))

    def texts(self, count):
        return [f"clip {n}" for n in range(count)]

    def description(self):
        return {"name": self.name}


@pytest.fixture(scope="module")
def tokenizer():
    texts = [*random_captions(500), *(prefix_of(kind) for kind in CAPTION_KINDS[1:] for _ in range(50))]
    return train_tokenizer(texts, num_tokens=900, context_length=80)


def batches(clips, tokenizer, *, stages=(), size=4, rank=0, num_ranks=1, num_batches=100, seed=0):
    return CaptionBatches(
        clips, tokenizer, PREPROCESSOR, num_frames=2, stages=parse_stages(stages, num_batches),
        prefixes={kind: prefix_of(kind) for kind in CAPTION_KINDS},
        batch_size=size, rank=rank, num_ranks=num_ranks, seed=seed,
    )  # fmt: skip


def numbers_in(batch):
    return batch["pixels_BTHWC"][:, 0, 0, 0, 0].tolist()


def target_captions(batch, tokenizer):
    return [tokenizer.decode(ids) for ids in batch["texts_SM"][batch["caption_index_B"]].tolist()]


def test_every_epoch_has_every_clip_once_in_its_own_order():
    epochs = [[shuffled_index(position, 7, seed=1) for position in range(7 * e, 7 * e + 7)] for e in range(3)]
    assert [sorted(number for number, _ in one) for one in epochs] == [list(range(7))] * 3
    assert [{epoch for _, epoch in one} for one in epochs] == [{0}, {1}, {2}]
    assert len({tuple(number for number, _ in one) for one in epochs}) == 3
    assert shuffled_index(12345, None, seed=1) == (12345, 0)


def test_ranks_split_a_finite_source_and_a_resume_finds_its_place(tokenizer):
    clips = NumberClips(12)
    alone = [numbers_in(batches(clips, tokenizer)[number]) for number in range(6)]
    assert sorted(chain(*alone[:3])) == sorted(chain(*alone[3:])) == list(range(12))
    shared = [
        numbers_in(batches(clips, tokenizer, rank=rank, num_ranks=2)[number]) for number in (0, 1, 2) for rank in (0, 1)
    ]
    assert shared == alone
    stream = batches(clips, tokenizer).stream(4, num_workers=1)
    assert numbers_in(next(stream)) == alone[4]
    assert numbers_in(batches(clips, tokenizer, seed=1)[0]) != alone[0]


def test_an_unreadable_clip_is_replaced_and_counted(tokenizer, caplog):
    batch = batches(NumberClips(6, broken=(2, 5)), tokenizer, size=6)[0]
    assert batch["num_unreadable"] >= 2
    assert not {2, 5} & set(numbers_in(batch))
    assert "it ends early" in caplog.text
    with pytest.raises(RecaptionError, match="in a row cannot be read"):
        batches(NumberClips(3, broken=(0, 1, 2)), tokenizer)[0]


def test_two_stages_train_short_captions_first_then_mostly_descriptive_ones(tokenizer):
    of = batches(SceneClips(), tokenizer, stages=TWO_STAGES, size=40, num_batches=10)
    first, second = of[3], of[4]
    assert (first["prefix_B"] == len(tokenizer.encode(["short :"])[0].nonzero()) - 2).all()
    assert all(text.lower().startswith("short:") for text in target_captions(first, tokenizer))
    without_prefix = (second["prefix_B"] == 0).float().mean()
    assert 0.6 < without_prefix < 0.97
    kinds = {text.split(":")[0].strip() for text in target_captions(second, tokenizer) if ":" in text[:16]}
    assert len(kinds & {"Short", "Colour", "Style", "Text", "Action", "Main object"}) >= 2


def test_contrastive_positives_have_no_prefix_and_are_encoded_once(tokenizer):
    batch = batches(NumberClips(40), tokenizer, size=4)[0]
    assert batch["positive_index_KB"].shape == (2, 4)
    assert torch.equal(batch["positive_index_KB"][0], batch["caption_index_B"])
    assert len(batch["texts_SM"]) == 8
    short = batches(NumberClips(40), tokenizer, stages=("1:short=1", "1:descriptive=1"), num_batches=2, size=4)[0]
    positives = [tokenizer.decode(ids) for ids in short["texts_SM"][short["positive_index_KB"][1]].tolist()]
    assert positives == [f"Clip {number}" for number in numbers_in(short)]
    assert len(short["texts_SM"]) == 12
    assert short["num_tokens"] == int((short["length_B"] - 1 - short["prefix_B"]).sum())


def test_clips_without_the_stages_kinds_use_a_kind_they_have(tokenizer):
    clips = NumberClips(8, captions=lambda n: {"short": (f"clip {n}",)} if n % 2 else {"colour": ("red",)})
    batch = batches(clips, tokenizer, size=8)[0]
    texts = dict(zip(numbers_in(batch), target_captions(batch, tokenizer), strict=True))
    assert texts[1] == "Short: clip 1"
    assert texts[2] == "Colour: red"


def test_equal_texts_have_the_same_hash_on_every_rank(tokenizer):
    clips = NumberClips(8, captions=lambda n: {"descriptive": (f"clip {n // 4}",)})
    hashes = torch.cat([batches(clips, tokenizer, rank=rank, num_ranks=2)[0]["text_hash_KB"][0] for rank in (0, 1)])
    both = [numbers_in(batches(clips, tokenizer, rank=rank, num_ranks=2)[0]) for rank in (0, 1)]
    numbers = [*both[0], *both[1]]
    assert len(hashes.unique()) == 2
    for one, other in zip(hashes.tolist(), numbers, strict=True):
        assert (one == hashes[numbers.index(0)]) == (other < 4)


@pytest.mark.parametrize("which", ["own", "open_clip"])
def test_a_prefix_changes_no_token_of_the_text(tokenizer, which):
    own = tokenizer if which == "own" else ClipTokenizer(76)
    text = "a purple star rotates at night"
    plain, no_prefix = encode_with_prefix(own, "", text)
    prefixed, num_prefix = encode_with_prefix(own, "main object :", text)
    assert no_prefix == 0
    assert num_prefix >= 3
    length = int((plain == own.special.end).int().argmax())
    assert prefixed[1 + num_prefix : num_prefix + length + 1].tolist() == plain[1 : length + 1].tolist()
    long, _ = encode_with_prefix(own, "short :", "star " * 200)
    assert int((long == own.special.end).int().argmax()) == own.context_length - 1


def test_stages_are_fractions_of_all_batches():
    stages = parse_stages(("0.3:short=1", "0.7:descriptive=3,fields=7"), 1000)
    assert [stage.end_batch for stage in stages] == [300, 1000]
    assert stage_at(stages, 299).kind_weights == {"short": 1.0}
    assert stage_at(stages, 300).kind_weights["colour"] == pytest.approx(0.1)
    assert stage_at(stages, 5000) is stages[1]
    assert kinds_in(stages) == CAPTION_KINDS
    assert parse_stages((), 5)[0].kind_weights == {"descriptive": 1.0}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("short=1",), "not of the form"),
        (("1:short",), "not of the form"),
        (("1:poem=1",), "unknown kind 'poem'"),
        (("1:short=1",), "has descriptive"),
        (("0:descriptive=1",), "above 0"),
        (("1:descriptive=-1",), "above 0"),
    ],
)
def test_invalid_stages_are_refused(stages, message):
    with pytest.raises(UsageError, match=message):
        parse_stages(stages, 10)
