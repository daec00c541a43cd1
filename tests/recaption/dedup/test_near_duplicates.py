"""Copies of rendered scenes are found and other scenes are not; the best copy is kept, whatever the order of the pairs."""

from __future__ import annotations

import itertools
from functools import cache

import cv2
import numpy as np
import pyarrow as pa
import pytest

from recaption.dedup.candidates import candidate_pairs
from recaption.dedup.fingerprints import NO_HASH, thumbnails_from_bytes
from recaption.dedup.matching import match_pairs
from recaption.dedup.near_duplicates import PAIRS_SCHEMA, select_duplicates
from recaption.dedup.semantic import semantic_pairs
from recaption.quality.filters import FILTERS, FilterThresholds, drop_reasons, evaluate_filters
from recaption.scenes.renderer import SIMPLE, render
from tests.stand_ins.fingerprints import fingerprint_of, hashes_of

MIN_SIMILARITY = FilterThresholds().max_duplicate_similarity
SEEDS = (11, 12, 13, 14)


@cache
def scene(seed: int, num_frames: int = 40) -> np.ndarray:
    """Five seconds at 8 frames per second."""
    return render(seed, num_frames=num_frames, height_px=144, width_px=192, fps=8).frames_THWC


def scaled(frames_THWC: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames_THWC])


def noisy(frames_THWC: np.ndarray) -> np.ndarray:
    """Loss of detail and noise, as at a low bit rate."""
    height, width = frames_THWC.shape[1:3]
    coarse = scaled(scaled(frames_THWC, width // 3, height // 3), width, height).astype(np.float32)
    return np.clip(coarse + np.random.default_rng(0).normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)


COPIES = {
    "encoded": noisy,
    "half the size": lambda x: scaled(x, 96, 72),
    "letterboxed": lambda x: np.pad(x, ((0, 0), (20, 20), (0, 0), (0, 0))),
    "cropped": lambda x: x[:, 6:-6, 8:-8],
    "cropped on one side": lambda x: x[:, :-9],
    "shifted": lambda x: x[3:],
    "shifted by a second": lambda x: x[8:],
    "darker": lambda x: (x * 0.85).astype(np.uint8),
    "several of these": lambda x: np.pad(scaled(noisy(x)[3:, 5:-5, 6:-6], 120, 90), ((0, 0), (12, 12), (0, 0), (0, 0))),
}


@pytest.fixture(scope="module")
def thumbnails() -> dict[int, np.ndarray]:
    return {seed: thumbnails_from_bytes(fingerprint_of(scene(seed)).pictures) for seed in SEEDS}


@pytest.mark.parametrize("kind", COPIES)
def test_each_copy_matches_its_original_only(kind, thumbnails):
    copies = {seed: fingerprint_of(COPIES[kind](scene(seed))) for seed in SEEDS}
    pairs = list(itertools.product(SEEDS, SEEDS))
    found = match_pairs(
        [thumbnails[a] for a, _ in pairs], [thumbnails_from_bytes(copies[b].pictures) for _, b in pairs]
    )
    for (a, b), similarity, overlap in zip(pairs, found.similarity, found.overlap_seconds, strict=True):
        if a == b:
            assert similarity > MIN_SIMILARITY, (kind, a)
            assert overlap >= 0.85 * copies[b].seconds
        else:
            assert similarity < MIN_SIMILARITY, (kind, a, b)
    hashes = [hashes_of(fingerprint_of(scene(seed))) for seed in SEEDS] + [hashes_of(copies[seed]) for seed in SEEDS]
    candidates = search(hashes)
    assert {(i, len(SEEDS) + i) for i in range(len(SEEDS))} <= set(map(tuple, candidates.tolist()))


def test_start_of_the_overlap_in_both_clips(thumbnails):
    tail = fingerprint_of(scene(11)[12:])  # 1.5 s later
    found = match_pairs([thumbnails[11]], [thumbnails_from_bytes(tail.pictures)])
    assert found.start_seconds_a[0] == pytest.approx(1.5, abs=0.26)
    assert found.start_seconds_b[0] == pytest.approx(0.0, abs=0.26)


def test_overlap_is_limited_to_the_common_footage(thumbnails):
    mixed = np.concatenate([scene(12)[:20], scene(11)[20:]])
    found = match_pairs([thumbnails[11]], [thumbnails_from_bytes(fingerprint_of(mixed).pictures)])
    assert found.similarity[0] > MIN_SIMILARITY
    assert found.overlap_seconds[0] == pytest.approx(2.5, abs=0.3)
    assert found.start_seconds_a[0] == pytest.approx(2.5, abs=0.3)


def test_two_takes_in_front_of_the_same_wall_do_not_match():
    wall = scene(13)[:1].repeat(32, axis=0)
    takes = []
    for path in (np.linspace(10, 140, 32), np.linspace(140, 10, 32)):
        take = wall.copy()
        for frame, left in zip(take, path.astype(int), strict=True):
            frame[40:100, left : left + 40] = (240, 200, 60)
        takes.append(thumbnails_from_bytes(fingerprint_of(take).pictures))
    found = match_pairs([takes[0], takes[0]], [takes[1], takes[0]])
    assert found.similarity[0] < MIN_SIMILARITY
    assert found.similarity[1] > 0.99
    assert found.picture_similarity[0] > found.motion_similarity[0]


def test_same_scene_in_another_colour_does_not_match():
    red = np.full((24, 96, 96, 3), (200, 120, 120), np.uint8)
    blue = np.full((24, 96, 96, 3), (117, 120, 237), np.uint8)  # of the same luma
    for take in (red, blue):
        take[:, 20:50, 20:60] = 30
    thumbnails = [thumbnails_from_bytes(fingerprint_of(take).pictures) for take in (red, blue)]
    found = match_pairs([thumbnails[0], thumbnails[0]], [thumbnails[1], thumbnails[0]])
    assert found.picture_similarity[0] > 0.95
    assert found.similarity[0] < MIN_SIMILARITY < found.similarity[1]


def test_still_pictures_match_but_moments_of_an_empty_street_do_not():
    street = scene(14)[:1].repeat(40, axis=0)
    passing = [street.copy(), street.copy()]
    passing[0][30:, 40:120, 20:180] = 250  # the car comes at the end
    passing[1][:10, 40:120, 20:180] = 20  # another leaves at the start
    a, b, still = (thumbnails_from_bytes(fingerprint_of(x).pictures) for x in (*passing, street))
    found = match_pairs([a, still], [b, still])
    assert found.similarity[0] < MIN_SIMILARITY
    assert found.similarity[1] > 0.99


def test_uniform_clips_never_match():
    flat = [np.full((24, 96, 96, 3), luma, np.uint8) for luma in (0, 128, 255)]
    fingerprints = [fingerprint_of(x) for x in flat for _ in range(2)]
    thumbnails = [thumbnails_from_bytes(one.pictures) for one in fingerprints]
    pairs = list(itertools.combinations(range(len(thumbnails)), 2))
    assert match_pairs([thumbnails[a] for a, _ in pairs], [thumbnails[b] for _, b in pairs]).similarity.max() < 0.1
    assert len(search([hashes_of(one) for one in fingerprints])) == 0


def test_different_simple_scenes_do_not_match():
    frames = [render(900 + i, num_frames=17, height_px=64, width_px=64, fps=8, **SIMPLE).frames_THWC for i in range(24)]
    thumbnails = [thumbnails_from_bytes(fingerprint_of(x).pictures) for x in frames]
    pairs = list(itertools.combinations(range(24), 2))
    found = match_pairs([thumbnails[a] for a, _ in pairs], [thumbnails[b] for _, b in pairs])
    assert found.similarity.max() < MIN_SIMILARITY


# --- candidates -------------------------------------------------------------------------------------------------------


def search(hashes: list[np.ndarray], **changes: int) -> np.ndarray:
    settings = {"num_tables": 8, "key_bits": 24, "max_hash_distance": 6, "max_candidates_per_hash": 64} | changes
    clip_indices = np.repeat(np.arange(len(hashes)), [h.size for h in hashes])
    return candidate_pairs(np.concatenate([h.ravel() for h in hashes]).astype(np.uint64), clip_indices, **settings)


def test_hashes_that_differ_in_few_bits_are_candidates():
    rng = np.random.default_rng(0)
    hashes = list(rng.integers(1, 2**63, (300, 10)).astype(np.uint64))
    near = hashes[7].copy()
    near ^= np.array([1 << int(bit) for bit in rng.integers(0, 64, 10)], np.uint64)  # one bit of each sample
    assert search([*hashes, near]).tolist() == [[7, 300]]


def test_all_copies_are_paired_with_the_best_and_cost_is_bounded():
    same = np.array([0x123456789ABCDEF0], np.uint64)
    found = search([same] * 500, max_candidates_per_hash=8)
    assert {b for a, b in found.tolist() if a == 0} == set(range(1, 500))
    assert len(found) <= 8 * 500


def test_number_of_key_ranges_does_not_change_the_candidates():
    rng = np.random.default_rng(5)
    hashes = list(rng.integers(1, 2**63, (400, 6)).astype(np.uint64))
    hashes += [one ^ np.uint64(1 << 40) for one in hashes[:150]]
    whole = search(hashes)
    assert whole.tolist() == [[i, 400 + i] for i in range(150)]
    assert (search(hashes, max_hashes_per_range=100) == whole).all()


def test_thumbnails_without_a_hash_have_no_candidates():
    nothing = np.full(5, NO_HASH)
    assert search([nothing, nothing]).shape == (0, 2)


# --- the rule ---------------------------------------------------------------------------------------------------------


def pair(a: str, b: str, **changes: object) -> dict[str, object]:
    """A row of PAIRS_SCHEMA: two identical clips of 4 s; `changes` sets other columns."""
    row: dict[str, object] = {"clip_id_a": a, "clip_id_b": b, "kind": "perceptual", "similarity": 0.95}
    row |= {"overlap_seconds": 4.0, "start_seconds_a": 0.0, "start_seconds_b": 0.0}
    for side in "ab":
        row |= {f"num_pixels_{side}": 100, f"seconds_{side}": 4.0, f"bytes_per_second_{side}": 10.0}
    return row | changes


def dropped(rows: list[dict[str, object]], candidates: str = "abcdef", **changes: float | None) -> dict[str, str]:
    limits = {
        "max_duplicate_similarity": 0.84,
        "max_semantic_similarity": None,
        "min_duplicate_fraction": 0.5,
    } | changes
    return select_duplicates(set(candidates), pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA), **limits)


@pytest.mark.parametrize(
    ("changes", "loser"),
    [
        ({}, "b"),
        ({"num_pixels_b": 200}, "a"),
        ({"seconds_b": 5.0}, "a"),
        ({"bytes_per_second_b": 20.0}, "a"),
        ({"num_pixels_a": 200, "seconds_b": 6.0, "bytes_per_second_b": 99.0}, "b"),
        ({"seconds_a": 5.0, "bytes_per_second_b": 99.0}, "b"),
    ],
)
def test_best_copy_has_more_pixels_then_seconds_then_bytes_then_the_smaller_id(changes, loser):
    assert dropped([pair("a", "b", **changes)]) == {loser: "ab".replace(loser, "")}


def test_only_the_middle_of_a_chain_is_dropped():
    assert dropped([pair("a", "b"), pair("b", "c")]) == {"b": "a"}


def test_one_of_many_copies_is_kept():
    rows = [pair(a, b) for a, b in itertools.combinations("abcde", 2)]
    assert dropped(rows) == dict.fromkeys("bcde", "a")


def test_coverage_by_several_clips_is_their_union():
    halves = [
        pair("a", "c", overlap_seconds=1.6, seconds_a=8.0),
        pair("b", "c", overlap_seconds=1.6, start_seconds_b=2.4, seconds_a=8.0),
    ]
    assert dropped(halves) == {"c": "a"}
    halves[1]["start_seconds_b"] = 0.2  # now both cover the same span
    assert dropped(halves) == {}
    assert dropped(halves, min_duplicate_fraction=0.4) == {"c": "a"}


def test_short_clip_inside_a_long_one_is_dropped():
    rows = [pair("a", "b", seconds_a=9.0, seconds_b=4.0)]
    assert dropped(rows) == {"b": "a"}
    sharper = [pair("a", "b", seconds_a=9.0, seconds_b=4.0, num_pixels_b=400)]
    assert dropped(sharper) == {}


def test_clip_dropped_by_another_filter_does_not_count():
    assert dropped([pair("a", "b")], candidates="b") == {}


def test_each_kind_of_pair_has_its_own_threshold():
    rows = [pair("a", "b", similarity=0.8), pair("c", "d", kind="semantic", similarity=0.97)]
    assert dropped(rows) == {}
    assert dropped(rows, max_duplicate_similarity=0.7) == {"b": "a"}
    assert dropped(rows, max_semantic_similarity=0.96) == {"d": "c"}
    assert dropped(rows, max_duplicate_similarity=None, max_semantic_similarity=0.99) == {}


def test_result_does_not_depend_on_the_order_of_pairs_or_clips():
    rng = np.random.default_rng(3)
    names = [f"{i:02d}" for i in range(30)]
    sizes = {name: int(rng.integers(1, 4)) * 100 for name in names}
    chosen = [p for p in itertools.combinations(names, 2) if rng.random() < 0.15]
    rows = [pair(a, b, num_pixels_a=sizes[a], num_pixels_b=sizes[b]) for a, b in chosen]
    expected = select_duplicates(
        set(names),
        pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA),
        max_duplicate_similarity=0.84,
        max_semantic_similarity=None,
        min_duplicate_fraction=0.5,
    )
    assert 5 < len(expected) < 30
    clips = {"clip_id": names, "start_seconds": [0.0] * 30, "end_seconds": [4.0] * 30}
    scores = {one.score: [None] * 30 for one in FILTERS if one.score != "seconds"}
    table = pa.table(clips | scores)
    for _ in range(5):
        shuffled = pa.Table.from_pylist([rows[i] for i in rng.permutation(len(rows))], schema=PAIRS_SCHEMA)
        order = rng.permutation(30)
        results = evaluate_filters(table.take(order), FilterThresholds(), shuffled)
        assert {names[i]: of for i, of in zip(order, results.duplicate_of, strict=True) if of} == expected
        assert [r == "duplicate" for r in results.reasons] == [of is not None for of in results.duplicate_of]
    assert drop_reasons(table, FilterThresholds(max_duplicate_similarity=None), shuffled) == [None] * 30


# --- semantic ---------------------------------------------------------------------------------------------------------


def embeddings(num_groups: int, group: int, seed: int = 0) -> np.ndarray:
    """Groups of similar vectors, cosine about 0.97 within a group; the rows of a group are adjacent."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_groups, 1, 64))
    return (centres + 0.17 * rng.normal(size=(num_groups, group, 64))).reshape(-1, 64)


def test_semantic_pairs_are_within_groups():
    pairs, similarity = semantic_pairs(embeddings(200, 3), 0.9)
    assert len(pairs) == 200 * 3
    assert (pairs[:, 0] // 3 == pairs[:, 1] // 3).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert 0.9 <= similarity.min() <= similarity.max() <= 1.0


def test_clustering_finds_what_exhaustive_comparison_finds():
    values = embeddings(2000, 3)
    exact, _ = semantic_pairs(values, 0.9, exact_up_to=10**6)
    clustered, _ = semantic_pairs(values, 0.9, exact_up_to=100)
    again, _ = semantic_pairs(values, 0.9, exact_up_to=100)
    assert (clustered == again).all()
    common = set(map(tuple, exact.tolist())) & set(map(tuple, clustered.tolist()))
    assert len(common) == len(clustered) >= 0.98 * len(exact)


def test_no_embeddings_have_no_pairs():
    assert semantic_pairs(np.zeros((0, 8)), 0.9)[0].shape == (0, 2)
