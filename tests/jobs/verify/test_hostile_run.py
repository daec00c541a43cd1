"""A run folder from a stranger: no name in its tables, and no link, leads out of it."""

import dataclasses
import os
import shutil

import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.verify.repair import repair_run
from packing.shards.read import read_latent, read_sample
from packing.shards.samples import LatentSample
from recaption.errors import OutsideRunError, VideoError
from recaption.ledger.verify import verify
from recaption.records import Sample, from_table

LATENTS = "latents/patch-24-w0.5"


def rename_shards(run, name, shard):
    table = run.read_table(name)
    renamed = table.set_column(table.schema.get_field_index("shard"), "shard", pa.array([shard] * table.num_rows))
    run.write_table(name, renamed, run.table_metadata(name))


@pytest.fixture
def outside(run_copy, tmp_path):
    """A tar outside of the run folder, with samples of the run."""
    shutil.copyfile(run_copy.path(run_copy.list("shards/*/*.tar")[0]), tmp_path / "outside.tar")
    return tmp_path / "outside.tar"


@pytest.mark.parametrize("how", ["../outside.tar", "shards/../../outside.tar", "absolute"])
@pytest.mark.parametrize("index", ["index.parquet", f"{LATENTS}/index.parquet", "shards/*/*.parquet"])
def test_names_in_tables_stay_inside(run_copy, small_recipe, in_process, outside, index, how):
    name = run_copy.list(index)[0]
    rename_shards(run_copy, name, str(outside) if how == "absolute" else how)
    record, read = (LatentSample, read_latent) if index.startswith("latents") else (Sample, read_sample)
    if name.endswith("index.parquet"):
        sample = from_table(run_copy.read_table(name), record)[0]
        with pytest.raises(OutsideRunError, match="is not a name inside the run folder"):
            read(run_copy, sample)
    problems = verify(run_copy, small_recipe.filters)
    assert ("path_outside", name) in {(p.kind, p.where) for p in problems}
    summary = repair_run(run_copy, small_recipe, in_process, num_pairs=0)
    assert summary["ok"], (summary["problems"], summary["refused"])


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_links_do_not_lead_out(run_copy, small_recipe, tmp_path, linked):
    shard = run_copy.list("shards/*/*.tar")[0]
    path = run_copy.path(shard if linked == "file" else os.path.dirname(shard))
    os.rename(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    sample = next(s for s in from_table(run_copy.read_table("index.parquet"), Sample) if s.shard == shard)
    with pytest.raises(OutsideRunError, match=r"leads out of the run folder by a link, to .*elsewhere"):
        read_sample(run_copy, sample)
    problems = verify(run_copy, small_recipe.filters)
    assert {"path_outside", "part_unreadable"} & {p.kind for p in problems}
    assert "leads out of the run folder" in " ".join(p.detail for p in problems)


def test_a_linked_caption_part_is_reported_and_made_again(run_copy, small_recipe, in_process, tmp_path):
    name = "captions/main/part-00001.parquet"
    content = run_copy.read_bytes(name)
    os.rename(run_copy.path(name), tmp_path / "elsewhere.parquet")
    os.symlink(tmp_path / "elsewhere.parquet", run_copy.path(name))
    summary = repair_run(run_copy, small_recipe, in_process, num_pairs=0)
    assert summary["ok"], (summary["problems"], summary["refused"])
    assert not os.path.islink(run_copy.path(name))
    assert run_copy.read_bytes(name) == content == (tmp_path / "elsewhere.parquet").read_bytes()


def test_links_within_the_run_folder_are_followed(run_copy, small_recipe):
    shard = run_copy.list("shards/*/*.tar")[0]
    os.rename(run_copy.path(shard), run_copy.path("moved.tar"))
    os.symlink(run_copy.path("moved.tar"), run_copy.path(shard))
    assert verify(run_copy, small_recipe.filters) == []


def test_a_linked_run_folder_is_fine(run_copy, small_recipe, tmp_path):
    os.symlink(run_copy.root, tmp_path / "link")
    assert main(["verify", "--run", str(tmp_path / "link"), "--pairs", "0", "--no-progress"]) == 0


@pytest.mark.parametrize("place", [{"offset_bytes": -512}, {"num_bytes": 0}, {"num_bytes": -1}, {"num_bytes": 1 << 60}])
def test_impossible_places_are_damaged_samples(run_copy, place):
    sample = from_table(run_copy.read_table("index.parquet"), Sample)[0]
    with pytest.raises(VideoError, match=r"unreadable|truncated"):
        read_sample(run_copy, dataclasses.replace(sample, **place))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0b", "latents/.."])
def test_no_name_goes_up(run_copy, name):
    for use in (run_copy.read_bytes, run_copy.exists, run_copy.remove, lambda name: run_copy.write_bytes(name, b"x")):
        with pytest.raises(OutsideRunError):
            use(name)
