"""Duplicate pairs of a run folder: independent of input order, computed once, used by the ledger and the stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.caption.semantic import find_semantic
from jobs.prepare import duplicates
from jobs.prepare.duplicates import find_perceptual
from jobs.recipe.presets import load_recipe
from jobs.recipe.run_inputs import kept_clips
from jobs.recipe.settings import stage_hashes
from recaption.dedup.fingerprints import ClipFingerprint
from recaption.dedup.near_duplicates import PAIRS_SCHEMA, PERCEPTUAL_PAIRS, DuplicateSettings, read_pairs
from recaption.errors import UsageError
from recaption.ledger.ledger import CLIPS_SCHEMA, build_ledger
from recaption.ledger.problems import Problem
from recaption.ledger.verify import verify
from recaption.quality.filters import FilterThresholds
from recaption.records import Video, to_table
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import render
from tests.stand_ins.fingerprints import fingerprint_of

SETTINGS = DuplicateSettings()


@pytest.fixture(scope="module")
def fingerprints() -> list[ClipFingerprint]:
    """Three scenes and two copies of the second: downscaled, and letterboxed."""
    scenes = [render(21 + i, num_frames=24, height_px=96, width_px=128, fps=8).frames_THWC for i in range(3)]
    copies = [scenes[1][:, ::2, ::2], np.pad(scenes[1], ((0, 0), (12, 12), (0, 0), (0, 0)))]
    return [fingerprint_of(frames, clip_id=f"{i:016x}-0000000-0000024") for i, frames in enumerate([*scenes, *copies])]


def write_run(folder: Path, fingerprints: list[ClipFingerprint], part_size: int = 2) -> RunFolder:
    run = RunFolder(str(folder))
    for part, start in enumerate(range(0, len(fingerprints), part_size)):
        part_fingerprints = fingerprints[start : start + part_size]
        metadata = {"recipe_hash": "r", "inputs_hash": ",".join(one.clip_id for one in part_fingerprints)}
        rows = [clip_row(one) for one in part_fingerprints]
        videos = [
            Video(video_id=one.clip_id[:16], uri=one.clip_id, num_frames=24, duration_seconds=one.seconds)
            for one in part_fingerprints
        ]
        run.write_table(f"fingerprints/part-{part:05d}.parquet", to_table(part_fingerprints, ClipFingerprint), metadata)
        run.write_table(f"clips/part-{part:05d}.parquet", pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA), metadata)
        run.write_table(f"videos/part-{part:05d}.parquet", to_table(videos, Video), metadata)
    return run


def clip_row(one: ClipFingerprint) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(CLIPS_SCHEMA.names)
    row |= {"clip_id": one.clip_id, "video_id": one.clip_id[:16], "uri": one.clip_id, "shot_index": 0}
    row |= {"start_frame": 0, "end_frame": 24, "start_seconds": 0.0, "end_seconds": one.seconds, "fps": 8.0}
    return row | {"width_px": 128, "height_px": 96}


def number(clip_id: str) -> int:
    return int(clip_id[:16], 16)


def test_one_of_several_copies_is_kept_and_the_ledger_has_the_others(tmp_path, fingerprints):
    run = write_run(tmp_path / "run", fingerprints)
    assert build_ledger(run, FilterThresholds()).summary()["clips"]["dropped"] == {}
    assert find_perceptual(run, SETTINGS, progress=False)
    found = {(number(row["clip_id_a"]), number(row["clip_id_b"])) for row in read_pairs(run).to_pylist()}
    assert found == {(1, 3), (1, 4), (3, 4)}
    ledger = build_ledger(run, FilterThresholds())
    assert ledger.summary()["clips"]["dropped"] == {"duplicate": 2}
    assert {number(c.clip_id): number(c.duplicate_of) for c in ledger.clips if c.duplicate_of} == {3: 1, 4: 1}
    kept = [number(clip.clip_id) for clips in kept_clips(run, load_recipe("quickstart")).values() for clip in clips]
    assert kept == [0, 1, 2]
    assert build_ledger(run, FilterThresholds(max_duplicate_similarity=None)).summary()["clips"]["dropped"] == {}


def test_pairs_are_computed_again_only_after_a_change(tmp_path, fingerprints):
    run = write_run(tmp_path / "run", fingerprints[:4])
    assert find_perceptual(run, SETTINGS, progress=False)
    before = run.read_bytes(PERCEPTUAL_PAIRS)
    assert not find_perceptual(run, SETTINGS, progress=False)
    assert find_perceptual(run, DuplicateSettings(min_similarity=0.5), progress=False)
    assert find_perceptual(run, SETTINGS, progress=False)
    assert run.read_bytes(PERCEPTUAL_PAIRS) == before
    write_run(tmp_path / "run", fingerprints)
    assert find_perceptual(run, SETTINGS, progress=False)
    assert read_pairs(run).num_rows == 3


def test_order_and_part_size_of_the_inputs_change_nothing(tmp_path, fingerprints):
    tables = []
    for number_of_run, part_size in enumerate((1, 2, 3, 5)):
        order = np.random.default_rng(number_of_run).permutation(len(fingerprints))
        run = write_run(tmp_path / str(number_of_run), [fingerprints[i] for i in order], part_size)
        find_perceptual(run, SETTINGS, progress=False)
        tables.append(read_pairs(run))
    assert tables[0].num_rows == 3
    assert all(table == tables[0] for table in tables)


def test_the_same_clip_id_twice_is_one_clip(tmp_path, fingerprints):
    run = write_run(tmp_path / "run", [*fingerprints[:3], fingerprints[1]])
    find_perceptual(run, SETTINGS, progress=False)
    assert read_pairs(run).num_rows == 0


def test_a_clip_with_many_copies_needs_few_comparisons_per_copy(tmp_path, fingerprints):
    copies = [dataclasses.replace(fingerprints[1], clip_id=f"{i:016x}-0000000-0000024") for i in range(100, 160)]
    run = write_run(tmp_path / "run", [*fingerprints, *copies])
    find_perceptual(run, SETTINGS, progress=False)
    assert read_pairs(run).num_rows < 2 * SETTINGS.max_matches_per_clip * len(copies)
    ledger = build_ledger(run, FilterThresholds())
    assert ledger.summary()["clips"]["dropped"] == {"duplicate": 62}
    loose = dataclasses.replace(SETTINGS, max_matches_per_clip=1000)
    find_perceptual(run, loose, progress=False)
    assert read_pairs(run).num_rows > 1000
    assert {c.clip_id for c in ledger.clips if c.duplicate_of} == {
        c.clip_id for c in build_ledger(run, FilterThresholds()).clips if c.duplicate_of
    }


def test_clips_that_all_look_alike_cost_a_bounded_number_of_comparisons(tmp_path, fingerprints, monkeypatch):
    """Ten hours of one camera: where no clip covers another entirely, `max_matches_per_clip` ends nothing."""
    alike = [dataclasses.replace(fingerprints[1], clip_id=f"{i:016x}-0000000-0000024") for i in range(40)]
    run = write_run(tmp_path / "run", alike)
    compared = []
    matched = duplicates._matched
    monkeypatch.setattr(duplicates, "_matched", lambda *args: compared.append(len(args[2])) or matched(*args))
    settings = dataclasses.replace(SETTINGS, max_matches_per_clip=1000, max_comparisons_per_clip=3)
    find_perceptual(run, settings, progress=False)
    assert sum(compared) == 1 + 2 + 3 * 37
    ledger = build_ledger(run, FilterThresholds())
    assert ledger.summary()["clips"]["dropped"] == {"duplicate": 39}


def test_a_run_without_clips_has_no_pairs(tmp_path):
    run = write_run(tmp_path / "run", [])
    assert find_perceptual(run, SETTINGS, progress=False)
    assert run.read_table(PERCEPTUAL_PAIRS).schema.names == PAIRS_SCHEMA.names


def test_duplicate_settings_are_in_no_stage_hash():
    recipe = load_recipe("quickstart")
    changed = dataclasses.replace(recipe.prepare, duplicates=DuplicateSettings(key_bits=20))
    assert stage_hashes(dataclasses.replace(recipe, prepare=changed)) == stage_hashes(recipe)


def test_verify_opens_fingerprints_and_pairs(tmp_path, fingerprints):
    run = write_run(tmp_path / "run", fingerprints)
    find_perceptual(run, SETTINGS, progress=False)

    def unreadable() -> list[Problem]:
        return [problem for problem in verify(run, FilterThresholds()) if problem.kind == "part_unreadable"]

    assert unreadable() == []
    for name in ("fingerprints/part-00001.parquet", PERCEPTUAL_PAIRS):
        intact = run.read_bytes(name)
        run.write_bytes(name, intact[:-7])
        assert [problem.where for problem in unreadable()] == [name]
        run.write_bytes(name, intact)


def write_embeddings(run: RunFolder, values: dict[str, np.ndarray]) -> None:
    unit = [(v / np.linalg.norm(v)).astype("<f2").tobytes() for v in values.values()]
    table = pa.table({"clip_id": list(values), "embedding": pa.array(unit, pa.binary())})
    run.write_table("embeddings/first/part-00000.parquet", table, {"recipe_hash": "e"})


def test_semantic_duplicates_are_dropped_only_with_a_threshold(tmp_path, fingerprints):
    run = write_run(tmp_path / "run", fingerprints[:3])
    ids = [one.clip_id for one in fingerprints[:3]]
    vectors = np.random.default_rng(0).normal(size=(3, 32))
    vectors[2] = vectors[0] + 0.05 * vectors[1]
    write_embeddings(run, dict(zip(ids, vectors, strict=True)))
    assert find_semantic(run, SETTINGS, "first")
    assert not find_semantic(run, SETTINGS, "first")
    (row,) = read_pairs(run).to_pylist()
    assert (row["clip_id_a"], row["clip_id_b"], row["kind"]) == (ids[0], ids[2], "semantic")
    assert row["similarity"] == pytest.approx(0.999, abs=2e-3)
    assert build_ledger(run, FilterThresholds()).summary()["clips"]["dropped"] == {}
    strict = build_ledger(run, FilterThresholds(max_semantic_similarity=0.95))
    assert strict.summary()["clips"]["dropped"] == {"duplicate": 1}


def test_semantic_search_without_embeddings_is_an_error(tmp_path, fingerprints):
    with pytest.raises(UsageError, match="no embeddings"):
        find_semantic(write_run(tmp_path / "run", fingerprints[:1]), SETTINGS, "first")
