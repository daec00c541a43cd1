import json
import subprocess
import sys

import pytest

from recaption.captions.mixture import (
    DEFAULT_WEIGHTS,
    CaptionMixture,
    captions_for_sample,
    parse_mixture_weights,
    sample_caption_kinds,
)
from recaption.errors import UsageError
from recaption.records import Caption
from recaption.rng import keys_from_names

IDS = [f"00c0ffee00c0ffee-{i:07d}-{i + 24:07d}" for i in range(10_000)]
KEYS = keys_from_names(IDS)


@pytest.mark.parametrize(
    "entries", [DEFAULT_WEIGHTS, ("descriptive=0.5", "short=0.3", "original=0.2"), ("short=1", "main_object=3")]
)
def test_kind_frequencies_over_clips_and_epochs_match_the_weights(entries):
    weights = parse_mixture_weights(entries)
    by_clip = sample_caption_kinds(KEYS, epoch=0, weights=weights)
    by_epoch = [sample_caption_kinds(KEYS[:1], epoch=epoch, weights=weights)[0] for epoch in range(10_000)]
    for kind, weight in weights.items():
        error = 4 * (weight * (1 - weight) / 10_000) ** 0.5  # four standard errors
        assert by_clip.count(kind) / 10_000 == pytest.approx(weight, abs=error)
        assert by_epoch.count(kind) / 10_000 == pytest.approx(weight, abs=error)


def test_epochs_and_seeds_are_sampled_independently():
    weights = parse_mixture_weights(["descriptive=0.5", "short=0.5"])
    first, second = (sample_caption_kinds(KEYS, epoch=epoch, weights=weights) for epoch in (0, 1))
    other = sample_caption_kinds(KEYS, epoch=0, weights=weights, seed=1)
    for one in (second, other):
        assert sum(a == b for a, b in zip(first, one)) / len(IDS) == pytest.approx(0.5, abs=0.02)


def test_sampled_kind_is_the_same_in_another_process():
    code = (
        "import json, sys; from recaption.captions.mixture import sample_caption_kinds, parse_mixture_weights;"
        "from recaption.rng import keys_from_names;"
        "r = parse_mixture_weights(['descriptive=0.6', 'short=0.4']);"
        "keys = keys_from_names(json.load(sys.stdin));"
        "print(json.dumps(sample_caption_kinds(keys, epoch=2, weights=r, seed=5)))"
    )
    run = subprocess.run([sys.executable, "-c", code], input=json.dumps(IDS[:500]), capture_output=True, text=True)
    weights = parse_mixture_weights(["descriptive=0.6", "short=0.4"])
    assert json.loads(run.stdout) == sample_caption_kinds(KEYS[:500], epoch=2, weights=weights, seed=5)


def test_missing_kind_falls_back_to_descriptive_and_changes_no_other_sample():
    weights = parse_mixture_weights(["descriptive=0.5", "original=0.5"])
    captions = ["d"] * len(IDS)
    full = {i: {"original": "o"} for i in range(len(IDS))}
    some = {i: texts for i, texts in full.items() if i % 2}
    shown = [CaptionMixture(IDS, captions, texts, weights, 0) for texts in (full, some)]
    for i in range(1000):
        assert shown[1].text(i, 3) == (shown[0].text(i, 3) if i % 2 else "d")
    assert shown[0].fingerprint != shown[1].fingerprint
    others = [(weights, 1), (parse_mixture_weights(["descriptive=0.4", "original=0.6"]), 0)]
    assert all(CaptionMixture(IDS, captions, full, *other).fingerprint != shown[0].fingerprint for other in others)


def test_descriptive_texts_of_another_set_replace_the_captions_of_the_shards():
    mixture = CaptionMixture(
        IDS[:2], ["a", "b"], {0: {"descriptive": "new", "original": "o"}}, parse_mixture_weights(["descriptive=1"]), 0
    )
    assert [mixture.text(i, 0) for i in range(2)] == ["new", "b"]
    mixture = CaptionMixture(IDS[:2], ["a", "b"], {0: {"descriptive": "new"}}, parse_mixture_weights(["original=1"]), 0)
    assert [mixture.text(i, 0) for i in range(2)] == ["new", "b"]


def test_sample_shows_the_captions_of_its_own_window():
    def caption(text, start, end, **fields):
        return Caption(text=text, start_seconds=start, end_seconds=end, **fields)

    rows = [
        caption("whole", 10.0, 18.0),
        caption("first half", 10.0, 14.0, window=1),
        caption("second half", 14.0, 18.0, window=2),
        caption("short", 10.0, 18.0, kind="short"),
        caption("by hand", 10.0, 18.0, kind="", source="original"),
        caption("a a a a", 10.0, 14.0, kind="style", reason="bad_caption"),
    ]
    kinds = ("descriptive", "short", "original", "style")
    found = captions_for_sample(rows, kinds, 10.0, 13.5)
    assert found == {"descriptive": "first half", "short": "short", "original": "by hand"}
    assert captions_for_sample(rows, kinds, 10.0, 18.0)["descriptive"] == "whole"


@pytest.mark.parametrize(
    "entries", [("descriptive",), ("haiku=1",), ("short=-1",), ("short=nan",), ("short=1", "short=2"), ("short=0",), ()]
)
def test_invalid_weights_are_refused(entries):
    with pytest.raises(UsageError, match="caption mixture weight"):
        parse_mixture_weights(entries)
