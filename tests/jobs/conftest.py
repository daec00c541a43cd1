"""A small run folder up to latents, computed in this process: three parts of four scenes, one scene twice."""

import contextlib
import dataclasses
import json
import shutil

import pytest

from jobs import cli
from jobs.caption.caption import caption
from jobs.commands import Common
from jobs.encode.encode import encode
from jobs.prepare.prepare import prepare
from jobs.recipe.presets import quickstart
from jobs.shard import shard
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render


class InProcess:
    """A cluster that runs parts in this process; Ray would take seconds to start."""

    progress = False

    def run_parts(self, worker, settings, parts, **_):
        if parts:
            one = worker(**settings)
            yield from map(one, parts)

    def throughput(self):
        return {}


@pytest.fixture(scope="session")
def in_process():
    return InProcess()


@pytest.fixture(scope="session")
def scene_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(11):
        scene = render(5000 + seed, num_frames=17, height_px=64, width_px=(64, 96)[seed % 2], fps=8, **SIMPLE)
        scene.write(folder / f"scene-{seed:02d}.mp4")
    shutil.copyfile(folder / "scene-00.mp4", folder / "the-same-again.mp4")
    return folder


@pytest.fixture(scope="session")
def small_recipe():
    recipe = quickstart()
    buckets = dataclasses.replace(recipe.shard.buckets, max_samples_per_shard=4)
    return dataclasses.replace(
        recipe,
        prepare=dataclasses.replace(recipe.prepare, part_size=4),
        shard=dataclasses.replace(recipe.shard, buckets=buckets),
    )


@pytest.fixture(scope="session")
def small_run(scene_videos, small_recipe, in_process, tmp_path_factory):
    """Read-only for tests; they change a `run_copy`."""
    run = RunFolder(str(tmp_path_factory.mktemp("small") / "run"))
    prepare([str(scene_videos)], run.uri, small_recipe, in_process)
    caption(run, small_recipe, "main", in_process)
    shard(run, small_recipe, "main", in_process)
    encode(run, small_recipe, in_process)
    return run


@pytest.fixture
def run_copy(small_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(small_run.root, copy)
    return RunFolder(str(copy))


@pytest.fixture
def command(monkeypatch, in_process, capsys):
    """Runs a command with its parts in this process; returns (exit code, JSON object, stderr)."""
    monkeypatch.setattr(Common, "cluster", lambda _: contextlib.nullcontext(in_process))
    in_process.address = None

    def run(*arguments):
        capsys.readouterr()
        code = cli.main([*arguments, "--json", "--no-progress"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out.strip() else {}, err

    return run
