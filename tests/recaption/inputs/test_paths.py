import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recaption.errors import UsageError
from recaption.inputs.paths import expand_paths


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp4", "a.webm", "deep/c.mkv", "unknown", "notes.json", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(paths, folder):
    return [path.removeprefix(f"{folder}/") for path in paths]


def test_a_folder_means_every_file_below_it_that_might_be_a_video(folder):
    assert names(expand_paths([str(folder)]), folder) == ["a.webm", "b.mp4", "deep/c.mkv", "unknown"]


def test_overlapping_paths_give_each_input_once(folder):
    assert names(expand_paths([f"{folder}/*.mp4", str(folder / "b.mp4")]), folder) == ["b.mp4"]


def test_a_text_list_is_relative_to_itself_and_keeps_missing_files(folder):
    (folder / "list.txt").write_text("# two of them\nb.mp4\n\ngone.mp4\n")
    assert names(expand_paths([str(folder / "list.txt")]), folder) == ["b.mp4", "gone.mp4"]


def test_a_parquet_list_needs_a_known_column(folder):
    pq.write_table(pa.table({"uri": ["b.mp4"]}), folder / "list.parquet")
    assert names(expand_paths([str(folder / "list.parquet")]), folder) == ["b.mp4"]
    pq.write_table(pa.table({"wrong": ["b.mp4"]}), folder / "list.parquet")
    with pytest.raises(UsageError, match="no column names the videos"):
        expand_paths([str(folder / "list.parquet")])


@pytest.mark.parametrize("path", ["nowhere", "deep/*.mp4", "empty"])
def test_a_path_without_input_is_named_in_the_error(folder, path):
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=path.replace("*", r"\*")):
        expand_paths([f"{folder}/{path}"])


def test_a_folder_may_be_any_fsspec_uri():
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/raw/a.mp4", b"x")
    assert expand_paths(["memory://raw"]) == ["memory:///raw/a.mp4"]
