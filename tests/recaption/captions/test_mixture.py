import json
import subprocess
import sys

import pytest

from recaption.captions.mixture import DEFAULT_RATIOS, Blend, choose, parse_ratios, texts_of_sample
from recaption.errors import UsageError
from recaption.records import Caption

IDS = [f"00c0ffee00c0ffee-{i:07d}-{i + 24:07d}" for i in range(10_000)]


@pytest.mark.parametrize(
    "ratios", [DEFAULT_RATIOS, ("descriptive=0.5", "short=0.3", "original=0.2"), ("short=1", "main_object=3")]
)
def test_shares_over_ten_thousand_clips_and_over_epochs_are_those_asked_for(ratios):
    shares = parse_ratios(ratios)
    by_clip = [choose(clip_id, epoch=0, ratios=shares) for clip_id in IDS]
    by_epoch = [choose(IDS[0], epoch=epoch, ratios=shares) for epoch in range(10_000)]
    for kind, share in shares.items():
        error = 4 * (share * (1 - share) / 10_000) ** 0.5  # four standard errors
        assert by_clip.count(kind) / 10_000 == pytest.approx(share, abs=error)
        assert by_epoch.count(kind) / 10_000 == pytest.approx(share, abs=error)


def test_epochs_and_seeds_draw_independently():
    shares = parse_ratios(["descriptive=0.5", "short=0.5"])
    first, second = ([choose(i, epoch=e, ratios=shares) for i in IDS] for e in (0, 1))
    other = [choose(i, epoch=0, ratios=shares, seed=1) for i in IDS]
    for one in (second, other):
        assert sum(a == b for a, b in zip(first, one)) / len(IDS) == pytest.approx(0.5, abs=0.02)


def test_the_choice_is_the_same_in_another_process():
    code = (
        "import json, sys; from recaption.captions.mixture import choose, parse_ratios;"
        "r = parse_ratios(['descriptive=0.6', 'short=0.4']);"
        "print(json.dumps([choose(i, epoch=2, ratios=r, seed=5) for i in json.load(sys.stdin)]))"
    )
    run = subprocess.run([sys.executable, "-c", code], input=json.dumps(IDS[:500]), capture_output=True, text=True)
    shares = parse_ratios(["descriptive=0.6", "short=0.4"])
    assert json.loads(run.stdout) == [choose(i, epoch=2, ratios=shares, seed=5) for i in IDS[:500]]


def test_a_sample_without_the_drawn_text_shows_its_descriptive_one_and_changes_no_other():
    shares = parse_ratios(["descriptive=0.5", "original=0.5"])
    said = ["d"] * len(IDS)
    full = {i: {"original": "o"} for i in range(len(IDS))}
    some = {i: texts for i, texts in full.items() if i % 2}
    shown = [Blend(IDS, said, texts, shares, 0) for texts in (full, some)]
    for i in range(1000):
        assert shown[1].text(i, 3) == (shown[0].text(i, 3) if i % 2 else "d")
    assert shown[0].fingerprint != shown[1].fingerprint
    others = [(shares, 1), (parse_ratios(["descriptive=0.4", "original=0.6"]), 0)]
    assert all(Blend(IDS, said, full, *other).fingerprint != shown[0].fingerprint for other in others)


def test_descriptive_texts_of_another_set_take_the_place_of_the_captions_in_the_shards():
    blend = Blend(IDS[:2], ["a", "b"], {0: {"descriptive": "new", "original": "o"}}, parse_ratios(["descriptive=1"]), 0)
    assert [blend.text(i, 0) for i in range(2)] == ["new", "b"]
    blend = Blend(IDS[:2], ["a", "b"], {0: {"descriptive": "new"}}, parse_ratios(["original=1"]), 0)
    assert [blend.text(i, 0) for i in range(2)] == ["new", "b"]


def test_a_sample_shows_the_texts_of_its_own_seconds():
    def said(text, start, end, **fields):
        return Caption(text=text, start_seconds=start, end_seconds=end, **fields)

    rows = [
        said("whole", 10.0, 18.0),
        said("first half", 10.0, 14.0, window=1),
        said("second half", 14.0, 18.0, window=2),
        said("short", 10.0, 18.0, kind="short"),
        said("by hand", 10.0, 18.0, kind="", source="original"),
        said("a a a a", 10.0, 14.0, kind="style", reason="bad_caption"),
    ]
    kinds = ("descriptive", "short", "original", "style")
    found = texts_of_sample(rows, kinds, 10.0, 13.5)
    assert found == {"descriptive": "first half", "short": "short", "original": "by hand"}
    assert texts_of_sample(rows, kinds, 10.0, 18.0)["descriptive"] == "whole"


@pytest.mark.parametrize(
    "ratios", [("descriptive",), ("haiku=1",), ("short=-1",), ("short=nan",), ("short=1", "short=2"), ("short=0",), ()]
)
def test_ratios_that_make_no_sense_are_refused(ratios):
    with pytest.raises(UsageError, match="blend ratio"):
        parse_ratios(ratios)
