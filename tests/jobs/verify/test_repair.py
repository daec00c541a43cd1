"""`verify --repair`: damaged parts are restored byte for byte, intact ones are not rewritten, refusals change nothing."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.caption.caption import caption
from jobs.prepare.prepare import prepare
from jobs.recipe.run_inputs import write_recipe
from jobs.recipe.settings import stage_hashes
from jobs.shard import shard
from jobs.verify.repair import repair_run
from recaption.errors import UsageError
from recaption.run_folder import RunFolder

ALWAYS_REWRITTEN = {"index.parquet", "shards/rejected.parquet", "latents/patch-24-w0.5/index.parquet"}
ALWAYS_REWRITTEN |= {"latents/patch-24-w0.5/statistics.json"}
"""Built from all shards whenever one is written: same bytes, new file."""


def tree(run):
    files = [path for path in Path(run.root).rglob("*") if path.is_file()]
    return {path.relative_to(run.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times(run):
    files = [path for path in Path(run.root).rglob("*") if path.is_file()]
    return {path.relative_to(run.root).as_posix(): path.stat().st_mtime_ns for path in files}


def one_of(run, pattern, index=0):
    return Path(run.path(run.list(pattern)[index]))


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:-num_bytes])


def flip(path, offset):
    payload = bytearray(path.read_bytes())
    payload[offset] ^= 255
    path.write_bytes(bytes(payload))


def change_rows(run, name, change):
    table = run.read_table(name)
    rows = change(table.to_pylist())
    run.write_table(name, pa.Table.from_pylist(rows, schema=table.schema), run.table_metadata(name))


def swap_texts(run):
    def change(rows):
        rows[0]["text"], rows[2]["text"] = rows[2]["text"], rows[0]["text"]
        return rows

    change_rows(run, "captions/main/part-00001.parquet", change)


def lose_row(name, row=1):
    return lambda run: change_rows(run, name, lambda rows: rows[:row] + rows[row + 1 :])


def lengthen_video(run):
    change_rows(
        run,
        "videos/part-00001.parquet",
        lambda rows: [{**r, "duration_seconds": r["duration_seconds"] + 1} for r in rows],
    )


def change_tokens(run):
    name = run.list("shards/*/*.parquet")[0]
    change_rows(run, name, lambda rows: [{**row, "num_latent_tokens": 7} for row in rows])


def double_shard(run):
    """The same clips in a shard that is not in the plan."""
    tar = one_of(run, "shards/*/*.tar")
    shutil.copyfile(tar, tar.with_name("000077.tar"))
    shutil.copyfile(tar.with_suffix(".parquet"), tar.with_name("000077.parquet"))


PARTS = {f"{folder}/part-00001.parquet" for folder in ("videos", "clips", "previews", "fingerprints")}
CAPTIONS = {f"{folder}/main/part-00001.parquet" for folder in ("captions", "embeddings")}
DAMAGE = {
    "a clips part that is not parquet": (lambda run: one_of(run, "clips/*", 1).write_bytes(b"?"), PARTS),
    "a missing videos part": (lambda run: one_of(run, "videos/*", 1).unlink(), PARTS),
    "missing previews": (lambda run: one_of(run, "previews/*", 1).unlink(), PARTS),
    "missing fingerprints": (lambda run: one_of(run, "fingerprints/*", 1).unlink(), PARTS),
    "the table of perceptual duplicates": (
        lambda run: run.write_bytes("duplicates/perceptual.parquet", b"PAR1"),
        {"duplicates/perceptual.parquet"},
    ),
    "the table of semantic duplicates": (
        lambda run: cut(one_of(run, "duplicates/semantic-main*"), 9),
        {"duplicates/semantic-main.parquet"},
    ),
    "a video of another duration": (lengthen_video, PARTS),
    "a missing clip": (lose_row("clips/part-00001.parquet"), PARTS),
    "the list of inputs": (lambda run: run.remove("inputs.parquet"), {"inputs.parquet"}),
    "truncated captions": (lambda run: cut(one_of(run, "captions/main/*", 1), 50), CAPTIONS),
    "a missing caption": (lose_row("captions/main/part-00001.parquet"), CAPTIONS),
    "missing embeddings": (lambda run: one_of(run, "embeddings/main/*", 1).unlink(), CAPTIONS),
    "two texts swapped": (swap_texts, CAPTIONS),
    "the index": (lambda run: run.remove("index.parquet"), set()),
    "a row of the index": (lose_row("index.parquet"), set()),
    "a temporary file": (lambda run: Path(run.path("clips/part-00001.parquet.0a1b.tmp")).write_bytes(b"half"), set()),
    "shards that are not in the plan": (double_shard, None),
    "a shard's table with wrong numbers": (change_tokens, None),
    "a truncated tar": (lambda run: cut(one_of(run, "shards/*/*.tar"), 12_000), None),
    "a flipped bit in a video": (lambda run: flip(one_of(run, "shards/*/*.tar"), 3000), None),
    "a shard's table": (lambda run: one_of(run, "shards/*/*.parquet").unlink(), None),
    "the list of rejects": (lambda run: run.write_bytes("shards/rejected.parquet", b"PAR1"), set()),
    "missing latents": (lambda run: one_of(run, "latents/*/*/*.tar").unlink(), None),
    "a latents table": (lambda run: cut(one_of(run, "latents/*/*/*.parquet"), 9), None),
    "the index of the latents": (lambda run: one_of(run, "latents/*/index.parquet").write_bytes(b""), set()),
}
"""name -> (damage, files that the repair may write; None: those of one shard)."""


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_repaired_to_the_byte_and_nothing_else_is_written(
    run_copy, small_run, small_recipe, in_process, name
):
    damage, expected = DAMAGE[name]
    before = times(run_copy)
    damage(run_copy)
    num_pairs = 32 if "texts" in name else 0  # only texts need the pixel checks, which take most of the time
    summary = repair_run(run_copy, small_recipe, in_process, num_pairs=num_pairs)
    assert summary["ok"], (summary["problems"], summary["refused"])
    assert summary["found"] > 0
    assert summary["repaired"]
    assert summary["refused"] == {}
    assert tree(run_copy) == tree(small_run)
    written = {file for file, time in times(run_copy).items() if before.get(file) != time} - ALWAYS_REWRITTEN
    if expected is None:
        assert len({file.rsplit(".", 1)[0] for file in written}) <= 1
    else:
        assert written == expected


def test_damage_in_several_stages_takes_a_few_rounds(run_copy, small_run, small_recipe, in_process):
    for name in (
        "a clips part that is not parquet",
        "truncated captions",
        "a truncated tar",
        "the index",
        "missing latents",
        "a temporary file",
    ):
        DAMAGE[name][0](run_copy)
    one_of(run_copy, "captions/main/*", 2).unlink()
    one_of(run_copy, "shards/*/*.parquet", 1).unlink()
    summary = repair_run(run_copy, small_recipe, in_process, num_pairs=0)
    assert summary["ok"], (summary["problems"], summary["refused"])
    assert summary["found"] >= 7
    assert tree(run_copy) == tree(small_run)


def test_shifted_texts_are_repaired(run_copy, small_run, small_recipe, in_process):
    for name in run_copy.list("captions/main/part-*.parquet"):
        change_rows(
            run_copy, name, lambda rows: [{**r, "text": rows[i - 1]["text"]} for i, r in enumerate(map(dict, rows))]
        )
    assert repair_run(run_copy, small_recipe, in_process, num_pairs=9)["ok"]
    assert tree(run_copy) == tree(small_run)


def test_an_intact_run_is_not_changed(run_copy, small_recipe, in_process):
    before = times(run_copy)
    summary = repair_run(run_copy, small_recipe, in_process, num_pairs=32)
    assert (summary["ok"], summary["found"], summary["repaired"], summary["refused"]) == (True, 0, [], {})
    assert times(run_copy) == before


def move_sources(run, recipe, in_process, folder, videos):
    """A run whose sources a test may remove: two parts, prepared, captioned and sharded."""
    folder.mkdir()
    for path in videos:
        shutil.copyfile(path, folder / path.name)
    prepare([str(folder)], run.uri, recipe, in_process)
    caption(run, recipe, "main", in_process)
    shard(run, recipe, "main", in_process)


def test_outputs_of_a_lost_source_are_not_recomputed(scene_videos, small_recipe, in_process, tmp_path):
    """Recomputing them would replace existing clips by failures."""
    run, videos = RunFolder(str(tmp_path / "run")), tmp_path / "videos"
    move_sources(run, small_recipe, in_process, videos, sorted(scene_videos.glob("*.mp4"))[:5])
    source = videos / "scene-01.mp4"
    cut(one_of(run, "captions/main/*"), 50)  # of scenes 0 to 3
    flip(one_of(run, "shards/*/*.tar"), 3000)
    for fate in ("has other bytes now", "is gone"):
        one_of(run, "previews/*", 1).unlink()  # of scene 4, whose source is there
        before = tree(run)
        if fate == "is gone":
            os.remove(source)
        else:
            shutil.copyfile(videos / "scene-02.mp4", source)
        summary = repair_run(run, small_recipe, in_process, num_pairs=0)
        assert not summary["ok"]
        assert f"{source} {fate}" in " ".join(summary["refused"].values())
        after = tree(run)
        assert "previews/part-00001.parquet" in after
        assert {name for name in before if before[name] != after.get(name)} <= ALWAYS_REWRITTEN
        left = {problem["where"].partition(":")[0] for problem in summary["problems"]}
        assert "captions/main/part-00000.parquet" in left


def test_captions_of_other_settings_are_refused(run_copy, small_recipe, in_process):
    other = dataclasses.replace(small_recipe, caption=dataclasses.replace(small_recipe.caption, max_tokens=5))
    cut(one_of(run_copy, "captions/main/*", 1), 50)
    write_recipe(run_copy, other)
    before = tree(run_copy)
    summary = repair_run(run_copy, other, in_process, num_pairs=0)
    assert not summary["ok"]
    assert "other settings" in summary["refused"]["captions/main/part-00001.parquet"]
    assert tree(run_copy) == before


def test_an_unavailable_captioner_changes_nothing(run_copy, small_recipe, in_process):
    unavailable = dataclasses.replace(
        small_recipe, caption=dataclasses.replace(small_recipe.caption, captioner="/no/such")
    )
    write_recipe(run_copy, unavailable)
    for name in run_copy.list("captions/main/part-*.parquet"):  # as if that captioner had written them
        table = run_copy.read_table(name)
        run_copy.write_table(
            name, table, run_copy.table_metadata(name) | {"recipe_hash": stage_hashes(unavailable)["caption"]}
        )
    lose_row("captions/main/part-00001.parquet")(run_copy)
    before = tree(run_copy)
    summary = repair_run(run_copy, unavailable, in_process, num_pairs=0)
    assert not summary["ok"]
    assert "/no/such" in summary["refused"]["captions/main/part-00001.parquet"]
    assert tree(run_copy) == before


def test_another_recipe_is_an_error_before_any_change(run_copy, small_recipe, in_process):
    other = dataclasses.replace(small_recipe, prepare=dataclasses.replace(small_recipe.prepare, max_clip_seconds=1.5))
    before = tree(run_copy)
    with pytest.raises(UsageError, match="other prepare settings"):
        repair_run(run_copy, other, in_process, num_pairs=0)
    assert tree(run_copy) == before


def test_shards_of_other_thresholds_are_refused(run_copy, small_recipe, in_process):
    strict = dataclasses.replace(small_recipe, filters=dataclasses.replace(small_recipe.filters, min_motion=0.03))
    before = tree(run_copy)
    summary = repair_run(run_copy, strict, in_process, num_pairs=0)
    assert {problem["kind"] for problem in summary["problems"]} == {"dropped_clip_in_shard"}
    assert "run `recaption shard`" in next(iter(summary["refused"].values()))
    assert tree(run_copy) == before


def test_a_source_that_changed_does_not_hold_up_other_repairs(scene_videos, small_recipe, in_process, tmp_path):
    run, videos = RunFolder(str(tmp_path / "run")), tmp_path / "videos"
    move_sources(run, small_recipe, in_process, videos, sorted(scene_videos.glob("*.mp4"))[:5])
    before = tree(run)
    shutil.copyfile(scene_videos / "scene-09.mp4", videos / "scene-04.mp4")
    one_of(run, "previews/*").unlink()  # of scenes 0 to 3
    one_of(run, "captions/main/*").unlink()
    run.remove("index.parquet")
    summary = repair_run(run, small_recipe, in_process, num_pairs=0)
    assert {problem["kind"] for problem in summary["problems"]} == {"source_changed"}
    assert "recaption prepare" in " ".join(summary["refused"].values())
    assert tree(run) == before
