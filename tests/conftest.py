"""What tests of several packages share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

LONGEST_FIRST = ("faults", "end_to_end", "jobs", "recaption", "train")
"""The order in which `make test` hands files to its processes: those that kill and wait first, short ones at the end."""


def pytest_configure() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # of this process and its children, before any imports torch
    settings.register_profile("recaption", deadline=None)  # a busy machine is no counterexample
    settings.load_profile("recaption")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """`small_model("git")` is the folder of such a model, made once per session."""
    import torch
    from small_captioners import BUILDERS

    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made[name] = BUILDERS[name](tmp_path_factory.mktemp("models") / name)
        return made[name]

    return folder_of


@pytest.fixture(scope="module")
def local_ray():
    """A local Ray with two CPUs for all tests of a file: `Cluster` uses one that it finds running, and leaves it running."""
    from jobs.cluster.cluster import Cluster

    with Cluster(num_workers=2, progress=False) as cluster:
        cluster.run_once(os.path.exists, "/")
        yield cluster
