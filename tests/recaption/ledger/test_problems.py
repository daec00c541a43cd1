"""Damaged tables and leftovers of killed runs become problems that name the file, not exceptions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from recaption.ledger.problems import Problem, check_temporary_files, read_tables_or_problems
from recaption.run_folder import RunFolder

SCHEMA = pa.schema([("clip_id", pa.string()), ("n", pa.int64())])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(str(tmp_path / "run"))
    table = pa.table({"n": [1, 2], "more": [True, False], "clip_id": ["a", "b"]})
    run.write_table("clips/part-00000.parquet", table)
    run.write_bytes("clips/part-00001.parquet", run.read_bytes("clips/part-00000.parquet")[:-20])
    run.write_table("clips/part-00002.parquet", pa.table({"n": [1]}))
    run.write_table("clips/part-00003.parquet", pa.table({"n": ["one"], "clip_id": ["c"]}))
    return run


def test_readable_tables_come_with_the_columns_of_the_schema_and_the_others_are_problems(run):
    names = [*run.list("clips/*"), "clips/part-00009.parquet"]
    tables, problems = read_tables_or_problems(run, names, SCHEMA)
    assert list(tables) == ["clips/part-00000.parquet"]
    assert tables["clips/part-00000.parquet"].schema == SCHEMA
    assert tables["clips/part-00000.parquet"].to_pylist() == [{"clip_id": "a", "n": 1}, {"clip_id": "b", "n": 2}]
    assert [problem.where for problem in problems] == names[1:]
    assert {problem.kind for problem in problems} == {"part_unreadable"}
    assert "clip_id" in problems[1].detail


def test_all_columns_are_checked_where_only_some_are_returned(run):
    names = ["clips/part-00000.parquet", "clips/part-00002.parquet"]
    tables, problems = read_tables_or_problems(run, names, SCHEMA, ["n"])
    assert tables["clips/part-00000.parquet"].column_names == ["n"]
    assert [problem.where for problem in problems] == ["clips/part-00002.parquet"]


def test_temporary_files_are_found_in_every_folder_and_named_relative_to_the_run(run):
    for name in ("index.parquet.1a2b3c4d.tmp", "shards/17f-96x96-8fps/000000.tar.1a2b3c4d.tmp"):
        path = Path(run.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [(problem.kind, problem.where) for problem in check_temporary_files(run)] == [
        ("temporary_file", "index.parquet.1a2b3c4d.tmp"),
        ("temporary_file", "shards/17f-96x96-8fps/000000.tar.1a2b3c4d.tmp"),
    ]


def test_a_kind_outside_the_closed_list_is_our_own_bug():
    with pytest.raises(AssertionError, match="odd"):
        Problem(kind="odd", where="a", detail="b")
