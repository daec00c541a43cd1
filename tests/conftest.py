"""What tests of several packages share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_captioners import BUILDERS


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """`small_model("git")` is the folder of such a model, made once per session."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made[name] = BUILDERS[name](tmp_path_factory.mktemp("models") / name)
        return made[name]

    return folder_of
