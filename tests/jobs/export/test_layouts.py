"""Each layout as its trainer finds it: which files, which paths in them, which texts; and what other libraries load."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from jobs.export.layouts import LAYOUTS
from recaption import open_run
from recaption.run_folder import RunFolder

NUM_CLIPS = 8


@pytest.fixture(scope="module")
def exports(export_run, export_recipe, in_process, tmp_path_factory):
    """Layout -> (folder, rows of its clips.parquet); each exported once, native, the side text first."""
    from jobs.export.export import export
    from jobs.export.settings import ExportSettings

    made = {}

    def of(layout: str):
        if layout not in made:
            folder = tmp_path_factory.mktemp("layouts") / layout
            settings = ExportSettings(to=layout, kinds=("original", "descriptive"), max_frames=9, fps=8)
            export(export_run, export_recipe, settings, str(folder), in_process)
            made[layout] = folder, RunFolder(str(folder)).read_table("clips.parquet").to_pylist()
        return made[layout]

    return of


def texts_beside(folder: Path, sub: str = "clips") -> dict[str, str]:
    return {path.stem: path.read_text() for path in (folder / sub).glob("*.txt")}


def test_every_layout_has_its_clips_a_card_and_an_account(exports):
    for name, layout in LAYOUTS.items():
        if name == "lance" and importlib.util.find_spec("lance") is None:
            continue
        folder, rows = exports(name)
        assert len(rows) == NUM_CLIPS, name
        if layout.container == "files":
            files = {str(path.relative_to(folder)) for path in folder.rglob("*.mp4")}
            assert files == {row["file"] for row in rows}, name
        card = (folder / "README.md").read_text()
        assert layout.trainers in card
        assert f"{NUM_CLIPS} clips" in card
        assert "{root}" not in card
        account = json.loads((folder / "export.json").read_text())
        assert account["clips"]["exported"] == NUM_CLIPS
        assert not any("/" in row["source"] for row in rows)  # local paths of the sources stay here
        for path in folder.rglob("*"):
            if path.suffix in (".json", ".jsonl", ".csv", ".toml", ".yaml", ".md", ".sh", ".py"):
                assert "/export-videos" not in path.read_text(), path


def test_folder_has_nothing_but_clips_and_their_texts_where_trainers_look(exports):
    folder, rows = exports("folder")
    assert {path.suffix for path in (folder / "clips").iterdir()} == {".mp4", ".txt"}
    assert texts_beside(folder) == {row["clip_id"]: row["caption"] for row in rows}


def test_diffusion_pipe_config(exports):
    folder, _ = exports("folder")
    config = tomllib.loads((folder / "diffusion-pipe.toml").read_text())
    assert config["directory"] == [{"path": str(folder / "clips"), "num_repeats": 1}]
    assert config["frame_buckets"] == [1, 9]
    assert config["resolutions"] == [78]
    assert config["ar_buckets"] == [1.5]


def test_musubi_config_has_a_dataset_per_frame_rate(exports):
    folder, rows = exports("folder")
    config = tomllib.loads((folder / "musubi-tuner.toml").read_text())
    assert config["general"]["resolution"] == [96, 64]
    assert [one.get("source_fps") for one in config["datasets"]] == [None, pytest.approx(29.97, abs=1e-3)]
    assert len({one["cache_directory"] for one in config["datasets"]}) == 2
    listed = [
        json.loads(line)
        for one in config["datasets"]
        for line in Path(one["video_jsonl_file"]).read_text().splitlines()
    ]
    assert {(row["video_path"], row["caption"]) for row in listed} == {
        (str(folder / row["file"]), row["caption"]) for row in rows
    }
    assert all(set(row) == {"video_path", "caption"} for row in listed)


def test_ai_toolkit_and_finetrainers_configs(exports):
    folder, _ = exports("folder")
    (dataset,) = yaml.safe_load((folder / "ai-toolkit.yaml").read_text())["datasets"]
    assert dataset["folder_path"] == str(folder / "clips")
    assert (dataset["num_frames"], dataset["fps"], dataset["resolution"]) == (9, 8, [78])
    (dataset,) = json.loads((folder / "finetrainers.json").read_text())["datasets"]
    assert dataset["data_root"] == str(folder / "clips")
    assert dataset["video_resolution_buckets"] == [[9, 64, 96]]


def test_jsonl_has_one_object_per_clip_with_all_that_is_known(exports):
    folder, rows = exports("jsonl")
    lines = [json.loads(line) for line in (folder / "dataset.jsonl").read_text().splitlines()]
    assert [(line["video_path"], line["caption"]) for line in lines] == [(r["file"], r["caption"]) for r in rows]
    assert all(set(line) == set(lines[0]) for line in lines)
    assert {line["source"] for line in lines} >= {"two-shots.mp4", "other.webm"}
    assert all(line["scores"]["motion"] is not None for line in lines)


def test_fastvideo_list(exports):
    folder, rows = exports("fastvideo")
    listed = json.loads((folder / "videos2caption.json").read_text())
    assert [one["cap"] for one in listed] == [row["caption"] for row in rows]
    for one, row in zip(listed, rows):
        assert (folder / "videos" / one["path"]).stat().st_size == one["size"]
        assert one["resolution"] == {"width": row["width_px"], "height": row["height_px"]}
        assert one["num_frames"] / one["fps"] == pytest.approx(one["duration"], abs=1e-4)
    assert "--preprocess.num_frames 9" in (folder / "preprocess.sh").read_text()


def test_ltx_list_and_buckets(exports):
    folder, rows = exports("ltx")
    listed = json.loads((folder / "dataset.json").read_text())
    assert listed == [{"caption": row["caption"], "video": row["file"]} for row in rows]
    assert all((folder / one["video"]).exists() for one in listed)
    buckets = re.search(r"--resolution-buckets (\S+)", (folder / "preprocess.sh").read_text())
    assert buckets is not None
    for width_px, height_px, num_frames in re.findall(r"(\d+)x(\d+)x(\d+)", buckets[1]):
        assert int(width_px) % 32 == int(height_px) % 32 == 0
        assert int(num_frames) % 8 == 1


def test_diffsynth_csv_is_read_by_pandas(exports):
    folder, rows = exports("diffsynth")
    with open(folder / "metadata.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert listed == [{"video": row["file"], "prompt": row["caption"]} for row in rows]
    pandas = pytest.importorskip("pandas")
    assert list(pandas.read_csv(folder / "metadata.csv")["prompt"]) == [row["caption"] for row in rows]


def test_automodel_has_a_json_beside_each_clip(exports):
    folder, rows = exports("automodel")
    for row in rows:
        beside = json.loads((folder / row["file"]).with_suffix(".json").read_text())
        assert beside["caption"] == row["caption"]


def test_cosmos_has_texts_in_metas_and_a_config_that_parses(exports):
    folder, rows = exports("cosmos")
    assert texts_beside(folder, "metas") == {row["clip_id"]: row["caption"] for row in rows}
    config = (folder / "dataset_config.py").read_text()
    found = {}
    exec(config, {"L": lambda cls: lambda **arguments: found.update(arguments), "Dataset": None})
    assert found == {"dataset_dir": str(folder), "num_frames": 9, "video_size": (64, 96)}
    assert all(row["num_frames"] > found["num_frames"] for row in rows)


def test_fiftyone_samples_have_scores_and_texts_as_fields(exports):
    """`fiftyone.Dataset.from_json` takes fields that are in its schema, and no others."""
    folder, rows = exports("fiftyone")
    document = json.loads((folder / "samples.json").read_text())
    samples = document["samples"]
    assert [(one["filepath"], one["caption"]) for one in samples] == [(row["file"], row["caption"]) for row in rows]
    assert all((folder / one["filepath"]).exists() for one in samples)
    assert all(set(one) - {"_media_type"} == set(document["sample_fields"]) for one in samples)
    assert all(one["score_motion"] is not None for one in samples)
    assert sum(one["caption_original"] is not None for one in samples) == 1


def test_tars_hold_clip_text_and_metadata_of_each_clip(exports):
    for name in ("webdataset", "energon"):
        folder, rows = exports(name)
        members: dict[str, bytes] = {}
        for path in sorted((folder / "shards").glob("*.tar")):
            with tarfile.open(path) as tar:
                members |= {member.name: tar.extractfile(member).read() for member in tar}
        assert set(members) == {f"{row['clip_id']}.{extension}" for row in rows for extension in ("mp4", "txt", "json")}
        for row in rows:
            assert members[f"{row['clip_id']}.txt"].decode() == row["caption"]
            assert len(members[f"{row['clip_id']}.mp4"]) == row["num_video_bytes"]
    assert yaml.safe_load((folder / ".nv-meta/dataset.yaml").read_text())["__class__"] == "CrudeWebdataset"


def test_webdataset_package_loads_the_tars(exports):
    import webdataset

    folder, rows = exports("webdataset")
    urls = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("__key__", "txt", "json"))
    assert [(key, text) for key, text, _ in found] == [(row["clip_id"], row["caption"]) for row in rows]
    assert all(metadata["source"] for _, _, metadata in found)


def test_energon_prepares_and_reads_the_tars(exports, tmp_path):
    """With the dataset.yaml of the export, without a question; needs the extra `energon-test`."""
    pytest.importorskip("megatron.energon")
    folder, rows = exports("energon")
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    flags = ("--non-interactive", "--split-ratio", "1,0,0", "--num-workers", "1", "--no-progress")
    _energon("prepare", *flags, str(place))
    done = subprocess.run(
        [sys.executable, "-c", ENERGON_LOADER, str(place)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(map(tuple, found)) == [(row["clip_id"], row["caption"], row["num_video_bytes"]) for row in rows]


ENERGON_LOADER = """
import json, sys
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, basic_sample_keys, get_savable_loader
from megatron.energon import get_val_dataset, stateless

@stateless
def cook(sample):
    return dict(**basic_sample_keys(sample), caption=json.loads(sample["json"])["caption"], num_bytes=len(sample["mp4"]))

class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(cook)]
    decoder = None

    def batch(self, samples):
        return samples

workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
dataset = get_val_dataset(sys.argv[1], split_part="train", worker_config=workers, batch_size=1, task_encoder=Encoder())
found = [s for batch in get_savable_loader(dataset) for s in batch]
print(json.dumps([[s["__key__"].rpartition("/")[2], s["caption"], s["num_bytes"]] for s in found]))
"""


def _energon(*arguments: str) -> None:
    command = "import sys; from megatron.energon.cli.main import main; sys.argv[0] = 'energon'; main()"
    done = subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def load_dataset(monkeypatch, tmp_path):
    """`datasets.load_dataset` without network, with a cache of its own."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()

    def load(path: str, video: str, **arguments):
        loaded = datasets.load_dataset(path, split="train", cache_dir=str(tmp_path / "cache"), **arguments)
        assert isinstance(loaded.features[video], datasets.Video)
        return loaded.cast_column(video, datasets.Video(decode=False))

    return load


def test_datasets_loads_the_video_folder(exports, load_dataset):
    folder, rows = exports("hf")
    loaded = load_dataset(str(folder), "video")
    by_id = {row["clip_id"]: row for row in rows}
    assert len(loaded) == NUM_CLIPS
    for sample in loaded:
        row = by_id[sample["clip_id"]]
        assert Path(sample["video"]["path"]) == folder / row["file"]
        assert sample["caption"] == row["caption"]
        assert set(sample["captions"]) == {"descriptive", "original"}
        assert sample["scores"]["motion"] is not None
    assert sum(sample["captions"]["original"] is not None for sample in loaded) == 1


def test_datasets_loads_the_tars_though_only_the_last_clip_has_a_second_text(exports, load_dataset):
    """`datasets` takes the columns from the first five samples."""
    folder, rows = exports("webdataset")
    assert ["original" in json.loads(row["captions"]) for row in rows] == [False] * (NUM_CLIPS - 1) + [True]
    for arguments in ({}, {"data_files": str(folder / "shards/*.tar")}):
        loaded = load_dataset("webdataset" if arguments else str(folder), "mp4", **arguments)
        assert [(sample["__key__"], sample["txt"]) for sample in loaded] == [(r["clip_id"], r["caption"]) for r in rows]
        kinds = [text["kind"] for text in loaded[NUM_CLIPS - 1]["json"]["captions"]]
        assert kinds == ["descriptive", "original"]


def test_datasets_loads_the_shards_of_a_run_as_they_are(small_run, load_dataset):
    """Without an export, as docs/export.md says."""
    samples = open_run(small_run.uri).samples().set_index("clip_id")
    loaded = load_dataset("webdataset", "mp4", data_files=f"{small_run.root}/shards/*/*.tar")
    assert {sample["__key__"]: sample["txt"] for sample in loaded} == samples.caption.to_dict()
    assert len(loaded) == len(samples) > 4
    assert all(sample["mp4"]["bytes"][4:8] == b"ftyp" for sample in loaded)
