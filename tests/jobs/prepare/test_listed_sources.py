"""Lists of public data sets over local files and through a server that fails now and then; tars; a stand-in of the Hub."""

import csv
import dataclasses
import io
import json
import os
import shutil
import sys
import tarfile
import types

import fsspec
import pytest
from flaky_server import serving

from jobs.prepare.prepare import prepare
from recaption.inputs import download, tars
from recaption.ledger.verify import verify
from recaption.run import open_run
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render

NUM_VIDEOS = int(os.environ.get("LIST_ROWS", "6"))
"""50 takes two minutes."""
TEXTS = [f"Scene number {i} shows a ball that rolls {i % 9 + 1} times across the floor." for i in range(NUM_VIDEOS)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for number in range(NUM_VIDEOS):
        scene = render(8200 + number, num_frames=24, height_px=64, width_px=64, fps=8, **SIMPLE)
        scene.write(folder / f"v{number}.mp4")
    return folder


@pytest.fixture
def run(tmp_path):
    return RunFolder(str(tmp_path / "run"))


@pytest.fixture
def recipe(small_recipe, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    return small_recipe


def panda(urls):
    """Three spans of each video; the second overlaps the first."""
    times = str([["0:00:00.000", "0:00:01.500"], ["0:00:01.000", "0:00:02.000"], ["0:00:02.500", "0:00:03.000"]])
    texts = [str([f"{text} Part {n}." for n in range(3)]) for text in TEXTS]
    rows = [[f"v{i}", url, times, texts[i], "[1, 2, 3]"] for i, url in enumerate(urls)]
    return [["videoID", "url", "timestamp", "caption", "matching_score"], *rows]


def webvid(urls):
    rows = [[i, url, "PT3S", "001", TEXTS[i]] for i, url in enumerate(urls)]
    return [["videoid", "contentUrl", "duration", "page_dir", "name"], *rows]


def openvid(urls):
    rows = [[url.rpartition("/")[2], TEXTS[i], 5.0 + i, 24, 8.0, 3.0] for i, url in enumerate(urls)]
    return [["video", "caption", "aesthetic score", "frame", "fps", "seconds"], *rows]


def texts_of_clips(run):
    """(text, start, end) of every clip that has a text of a list."""
    clips = open_run(run.uri).clips().round({"start_seconds": 3, "end_seconds": 3})
    times = {row.clip_id: (row.start_seconds, row.end_seconds) for row in clips.itertuples()}
    spans = open_run(run.uri).spans()
    return sorted((row.texts[0], *times[clip_id]) for row in spans.itertuples() for clip_id in row.clip_ids)


def panda_expected():
    spans = [(0.0, 1.5), (1.0, 2.0), (2.5, 3.0)]
    return sorted((f"{text} Part {n}.", *span) for text in TEXTS for n, span in enumerate(spans))


@pytest.mark.parametrize("where", ["local", "http"])
@pytest.mark.parametrize("rows", [panda, webvid, openvid])
def test_every_span_is_a_clip_with_its_caption(videos, run, recipe, in_process, tmp_path, rows, where):
    with serving(videos) as server:
        base = server.url if where == "http" else "https://nowhere.invalid"
        text = io.StringIO()
        csv.writer(text).writerows(rows([f"{base}/v{i}.mp4" for i in range(NUM_VIDEOS)]))
        (tmp_path / "list.csv").write_text(text.getvalue())
        root = str(videos) if where == "local" else server.url if rows is openvid else ""
        summary = prepare([str(tmp_path / "list.csv")], run.uri, recipe, in_process, video_root=root)
        assert summary["videos"]["ok"] == NUM_VIDEOS
        assert summary["failures"] == []
        found = texts_of_clips(run)
        if rows is panda:
            assert summary["clips"]["total"] == 3 * NUM_VIDEOS
            assert found == panda_expected()
            assert summary["seconds"]["overlap"] == pytest.approx(0.5 * NUM_VIDEOS)
            assert summary["seconds"]["outside"] == pytest.approx(0.5 * NUM_VIDEOS)
        else:
            assert {text for text, *_ in found} == set(TEXTS)
            assert sum(end - start for _, start, end in found) == pytest.approx(3.0 * NUM_VIDEOS)
        assert verify(run, recipe.filters, has_perceptual_pairs=True) == []
        if where == "http":
            assert server.ranges  # what a dropped line left was not fetched again
            assert any(count > 1 for count in server.requests.values())
            before = server.requests.total()
            assert (
                prepare([str(tmp_path / "list.csv")], run.uri, recipe, in_process, video_root=root)["computed_parts"]
                == 0
            )
            assert server.requests.total() - before == NUM_VIDEOS  # an etag each


def video2dataset_tar(videos):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for number in range(NUM_VIDEOS):
            metadata = {
                "url": f"https://h/{number}",
                "key": f"{number:05d}",
                "caption": TEXTS[number],
                "status": "success",
            }
            for extension, content in (
                ("mp4", (videos / f"v{number}.mp4").read_bytes()),
                ("txt", TEXTS[number].encode()),
                ("json", json.dumps(metadata).encode()),
            ):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize("where", ["local", "http", "hub"])
def test_a_tar_of_video2dataset_is_read_where_it_lies(videos, run, recipe, in_process, tmp_path, where):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "00000.tar").write_bytes(video2dataset_tar(videos))
    tars._indices.clear()
    with serving(tmp_path / "tars") as server:
        place = {"local": str(tmp_path / "tars"), "http": f"{server.url}/00000.tar", "hub": "hf://datasets/me/clips"}[
            where
        ]
        if where == "hub":
            fsspec.register_implementation("hf", hub_of(tmp_path / "tars"), clobber=True)
        try:
            summary = prepare([place], run.uri, recipe, in_process)
            assert summary["videos"]["ok"] == NUM_VIDEOS, summary["failures"]
            assert {text for text, *_ in texts_of_clips(run)} == set(TEXTS)
            assert list(open_run(run.uri).spans()["source"]) == [f"https://h/{i}" for i in range(NUM_VIDEOS)]
            assert prepare([place], run.uri, recipe, in_process)["computed_parts"] == 0
        finally:
            if where == "hub":
                from huggingface_hub import HfFileSystem

                fsspec.register_implementation("hf", HfFileSystem, clobber=True)
    assert verify(run, recipe.filters, has_perceptual_pairs=True) == []


def hub_of(folder):
    """A file system like the Hub's: `datasets/<owner>/<name>/<path>`."""
    memory = type(fsspec.filesystem("memory"))

    class Hub(memory):
        protocol = "hf"
        store, pseudo_dirs, cachable = {}, [""], False

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("hf://").strip("/")

        def unstrip_protocol(self, name):
            return "hf://" + name.strip("/")

    for path in folder.iterdir():
        Hub().pipe(f"/datasets/me/clips/{path.name}", path.read_bytes())
    return Hub


def test_pages_are_read_by_yt_dlp_only_if_asked(videos, run, recipe, in_process, tmp_path, monkeypatch):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "watch").write_text("<html>")
    asked = []

    class Loader:
        def __init__(self, options):
            self.options = options

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def extract_info(self, uri, download):
            asked.append(uri)
            shutil.copyfile(videos / "v0.mp4", self.options["outtmpl"])
            self.options["progress_hooks"][0]({"downloaded_bytes": 10})
            return {"format_id": "22"}

    monkeypatch.setitem(sys.modules, "yt_dlp", types.SimpleNamespace(YoutubeDL=Loader))
    with serving(tmp_path / "www") as server:
        server.is_flaky = False
        (tmp_path / "list.csv").write_text(f"url,caption\n{server.url}/watch,{TEXTS[0]}\n")
        server.content_type = "text/html; charset=utf-8"
        summary = prepare([str(tmp_path / "list.csv")], run.uri, recipe, in_process)
        assert [row["reason"] for row in summary["failures"]] == ["unreadable"]
        assert "recaption[yt-dlp]" in summary["failures"][0]["detail"]
        assert not asked
        decode = dataclasses.replace(recipe.prepare.decode, page_videos=True)
        recipe = dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, decode=decode))
        other = RunFolder(str(tmp_path / "other"))
        assert prepare([str(tmp_path / "list.csv")], other.uri, recipe, in_process)["videos"]["ok"] == 1
        assert asked == [f"{server.url}/watch"]
        assert prepare([str(tmp_path / "list.csv")], other.uri, recipe, in_process)["computed_parts"] == 0
        assert [text for text, *_ in texts_of_clips(other)] == [TEXTS[0]]
