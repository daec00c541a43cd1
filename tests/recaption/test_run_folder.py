import errno
import os
import uuid

import pyarrow as pa
import pytest

from recaption.errors import StorageError
from recaption.run_folder import TEMPORARY_SUFFIX, RunFolder, recipe_hash


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    return RunFolder(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run")


def test_a_table_comes_back_with_its_metadata(run):
    table = pa.table({"n": [1, 2]})
    run.write_table("clips/part-00000.parquet", table, {"recipe_hash": "abc"})
    assert run.read_table("clips/part-00000.parquet").to_pylist() == table.to_pylist()
    assert run.table_metadata("clips/part-00000.parquet") == {"recipe_hash": "abc"}


def test_the_same_table_gives_the_same_bytes(run):
    for name in ("a.parquet", "b.parquet"):
        run.write_table(name, pa.table({"n": [1, 2]}), {"k": "v"})
    assert run.read_bytes("a.parquet") == run.read_bytes("b.parquet")


def test_parts_are_read_in_order_and_none_is_no_error(run):
    schema = pa.schema([("n", pa.int64())])
    assert run.read_tables("clips/part-*.parquet", schema).num_rows == 0
    for part in (1, 0):
        run.write_table(f"clips/part-{part:05d}.parquet", pa.table({"n": [part]}))
    assert run.read_tables("clips/part-*.parquet", schema)["n"].to_pylist() == [0, 1]


@pytest.fixture
def bytes_read(run, monkeypatch):
    """Number of bytes of each `read` of a file that the run folder opens."""
    counts = []

    class CountedFile:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, num_bytes=-1):
            block = self.file.read(num_bytes)
            counts.append(len(block))
            return block

    really_open = run.fs.open
    monkeypatch.setattr(run.fs, "open", lambda *args, **named: CountedFile(really_open(*args, **named)))
    return counts


def test_other_columns_of_parts_are_not_read_from_storage(run, bytes_read):
    parts = [f"captions/main/part-{part:05d}.parquet" for part in range(3)]
    for part in parts:
        run.write_table(part, pa.table({"n": [1], "text": [os.urandom(1 << 18).hex()]}))
    assert run.read_tables("captions/main/part-*.parquet", pa.schema([("n", pa.int64())])).num_rows == 3
    assert sum(bytes_read) < 0.5 * sum(run.fs.size(run.path(part)) for part in parts)


def test_a_part_without_a_column_is_an_error_and_no_column_of_nulls(run):
    for part, names in enumerate((["n", "text"], ["n"])):
        run.write_table(f"clips/part-{part:05d}.parquet", pa.table({name: ["a"] for name in names}))
    with pytest.raises(KeyError, match="text"):
        run.read_tables("clips/part-*.parquet", pa.schema([("n", pa.string()), ("text", pa.string())]))


def test_the_part_that_the_storage_does_not_give_is_named(run, monkeypatch):
    for part in range(3):
        run.write_table(f"clips/part-{part:05d}.parquet", pa.table({"n": [part]}))
    really_open = run.fs.open

    def refuse(path, *args, **named):
        if path.endswith("part-00001.parquet"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really_open(path, *args, **named)

    monkeypatch.setattr(run.fs, "open", refuse)
    with pytest.raises(StorageError, match=r"clips/part-00001.parquet cannot be read: Permission denied$"):
        run.read_tables("clips/part-*.parquet", pa.schema([("n", pa.int64())]))


def test_it_survives_pickling(run):
    import pickle

    assert pickle.loads(pickle.dumps(run)).uri == run.uri


def test_a_failed_rename_leaves_neither_file_nor_litter(tmp_path, monkeypatch):
    run = RunFolder(str(tmp_path))
    run.write_bytes("a", b"old")

    def refuse(source, target):
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk is gone"):
        run.write_bytes("a", b"new")
    assert run.read_bytes("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_killed_run_left_is_neither_listed_nor_kept(tmp_path):
    run = RunFolder(str(tmp_path))
    run.write_bytes("clips/part-00000.parquet", b"whole")
    litter = tmp_path / "clips" / f"part-00001.parquet.1234{TEMPORARY_SUFFIX}"
    litter.write_bytes(b"half")
    assert run.list("clips/*") == ["clips/part-00000.parquet"]
    run.remove_temporary_files()
    assert not litter.exists()


def test_a_recipe_hash_ignores_the_order_of_keys_and_sees_every_value():
    assert recipe_hash({"a": 1, "b": [2]}) == recipe_hash({"b": [2], "a": 1})
    assert recipe_hash({"a": 1}) != recipe_hash({"a": 2})


def test_a_flipped_bit_never_gives_other_rows(tmp_path):
    run = RunFolder(str(tmp_path))
    texts = [f"a red circle moves {word} over blue water" for word in ("left", "right", "up", "down")] * 9
    table = pa.table({"clip_id": [f"c{i}" for i in range(36)], "text": texts, "motion": [i / 7 for i in range(36)]})
    run.write_table("a.parquet", table, {"recipe_hash": "1"})
    intact = run.read_bytes("a.parquet")
    num_refused = 0
    for position in range(0, len(intact), 2):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "a.parquet").write_bytes(bytes(damaged))
        for read in (run.read_table, lambda name: run.read_columns(name, ["clip_id", "text", "motion"])):
            try:
                found = read("a.parquet")
            except (pa.ArrowException, OSError, KeyError, ValueError):
                num_refused += 1
                continue
            if found.schema.equals(table.schema):  # other names and types are not taken for the columns of a record
                assert found.to_pydict() == table.to_pydict(), position
    assert num_refused > len(intact) / 4
