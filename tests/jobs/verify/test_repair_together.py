"""`verify --repair` of several damages at once: every subset ends in the bytes of the undamaged run folder."""

import dataclasses
import hashlib
import itertools
import random
import shutil
from pathlib import Path

import pytest

from jobs.caption.caption import caption
from jobs.encode.encode import encode
from jobs.prepare.prepare import prepare
from jobs.shard import shard
from jobs.verify.repair import repair_run
from jobs.verify.repair_order import open_sources
from recaption.run_folder import RunFolder


@pytest.fixture(scope="module")
def recipe(small_recipe):
    return dataclasses.replace(
        small_recipe,
        prepare=dataclasses.replace(small_recipe.prepare, part_size=2),
        shard=dataclasses.replace(
            small_recipe.shard, buckets=dataclasses.replace(small_recipe.shard.buckets, max_samples_per_shard=2)
        ),
        encode=dataclasses.replace(
            small_recipe.encode, text=dataclasses.replace(small_recipe.encode.text, encoder="captioner:tiny")
        ),
    )


@pytest.fixture(scope="module")
def whole_run(scene_videos, recipe, in_process, tmp_path_factory):
    """Seven videos, one of them twice, in four parts and four shards, with latents and encoded texts."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "videos").mkdir()
    for path in [*sorted(scene_videos.glob("scene-*.mp4"))[:6], scene_videos / "the-same-again.mp4"]:
        shutil.copyfile(path, folder / "videos" / path.name)
    run = RunFolder(str(folder / "run"))
    prepare([str(folder / "videos")], run.uri, recipe, in_process)
    caption(run, recipe, "main", in_process)
    shard(run, recipe, "main", in_process)
    encode(run, recipe, in_process)
    return Path(run.root)


def tree(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def one_of(run, pattern, index):
    return sorted(run.glob(pattern))[index]


def cut(path, num_bytes=50):
    path.write_bytes(path.read_bytes()[:-num_bytes])


def flip(path, offset=700):
    payload = bytearray(path.read_bytes())
    payload[offset] ^= 255
    path.write_bytes(bytes(payload))


def remove_shard(run):
    for suffix in (".tar", ".parquet"):
        one_of(run, f"shards/*/*{suffix}", -1).unlink()


def remove_previews_and_fingerprints(run):
    shutil.rmtree(run / "previews")
    one_of(run, "fingerprints/*", 1).unlink()


DAMAGE = {
    "videos": lambda run: cut(one_of(run, "videos/*", 2)),
    "clips": lambda run: cut(one_of(run, "clips/*", 1)),
    "captions": lambda run: one_of(run, "captions/main/part-*", 2).unlink(),
    "embeddings": lambda run: cut(one_of(run, "embeddings/main/*", 0)),
    "tar": lambda run: flip(one_of(run, "shards/*/*.tar", 0)),
    "shard": remove_shard,
    "latents": lambda run: cut(one_of(run, "latents/*/*/*.tar", -1), 2048),
    "texts": lambda run: cut(one_of(run, "text/*/*.safetensors", 0)),
}
"""Kinds whose subsets are all tried. The first four of security row 9 are tar, latents, captions, clips."""
FURTHER = {
    "inputs": lambda run: (run / "inputs.parquet").unlink(),
    "previews": remove_previews_and_fingerprints,
    "pairs": lambda run: shutil.rmtree(run / "duplicates"),
    "repeated": lambda run: cut(run / "captions/main/repeated.parquet"),
    "rejected": lambda run: cut(run / "shards/rejected.parquet"),
    "shard table": lambda run: cut(one_of(run, "shards/*/*.parquet", 1)),
    "index": lambda run: (run / "index.parquet").unlink(),
    "latents index": lambda run: one_of(run, "latents/*/index.parquet", 0).unlink(),
    "text list": lambda run: one_of(run, "text/*/*.parquet", 0).unlink(),
    "encoder": lambda run: one_of(run, "text/*/encoder.json", 0).unlink(),
    "every caption": lambda run: shutil.rmtree(run / "captions"),
    "every embedding": lambda run: shutil.rmtree(run / "embeddings"),
    "every shard": lambda run: shutil.rmtree(run / "shards"),
}
EVERY = {**DAMAGE, **FURTHER}
REVIEWED = ("tar", "latents", "captions", "clips")


def random_subsets(count):
    rng = random.Random(9)
    return [tuple(sorted(rng.sample(sorted(EVERY), rng.randint(3, 9)))) for _ in range(count)]


def assert_heals(whole_run, recipe, in_process, names, folder):
    copy = folder / "run"
    shutil.copytree(whole_run, copy)
    for name in names:
        try:
            EVERY[name](copy)
        except (IndexError, FileNotFoundError):
            assert any(other.startswith("every") or other == "pairs" for other in names), name
    summary = repair_run(RunFolder(str(copy)), recipe, in_process, num_pairs=0)
    assert summary["ok"], (names, summary["problems"], summary["refused"])
    assert summary["refused"] == {}
    assert tree(copy) == tree(whole_run), names
    shutil.rmtree(copy)


@pytest.mark.parametrize("names", [REVIEWED, tuple(DAMAGE), *[(name,) for name in FURTHER], *random_subsets(8)])
def test_damages_at_once_end_in_the_undamaged_bytes(whole_run, recipe, in_process, tmp_path, names):
    assert_heals(whole_run, recipe, in_process, names, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", range(1, len(DAMAGE) + 1))
def test_all_subsets_of_damages_end_in_the_undamaged_bytes(whole_run, recipe, in_process, tmp_path, size):
    for names in itertools.combinations(DAMAGE, size):
        assert_heals(whole_run, recipe, in_process, names, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_pairs_of_all_damages_end_in_the_undamaged_bytes(whole_run, recipe, in_process, tmp_path):
    for names in itertools.combinations(EVERY, 2):
        assert_heals(whole_run, recipe, in_process, names, tmp_path)


def test_a_stage_waits_for_the_stages_that_it_is_made_from():
    damaged = {"captions/main", "captions/other", "shards", "latents/vae", "previews"}
    assert open_sources("shards", damaged, {"main"}, indirect=False) == {"captions/main"}
    assert open_sources("latents/vae", damaged, {"main"}, indirect=False) == {"shards"}
    assert open_sources("latents/vae", damaged, {"main"}, indirect=True) == {"shards", "captions/main"}
    assert open_sources("captions/main", damaged, {"main"}, indirect=True) == set()
