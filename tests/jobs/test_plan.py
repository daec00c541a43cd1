from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.plan import plan
from jobs.recipe.presets import quickstart
from jobs.recipe.settings import Recipe, grid_of
from jobs.report.packs import plan_figures
from jobs.summary import print_summary
from packing.loader.loader import PackLoader
from recaption.errors import UsageError
from recaption.records import Sample, to_table
from recaption.run_folder import RunFolder
from tests.stand_ins.memory_source import MemorySource

SHAPES = [(1, 64, 64), (17, 64, 64), (9, 64, 64), (33, 128, 128)]
"""Frames, height and width in pixels: 16, 80, 48 and 576 tokens."""
NUM_EACH = 10


def samples(recipe: Recipe) -> list[Sample]:
    rows = []
    for number in range(NUM_EACH * len(SHAPES)):
        frames, height, width = SHAPES[number % len(SHAPES)]
        rows.append(
            Sample(
                clip_id=f"clip-{number:03d}",
                shard="shards/b/000000.tar",
                offset_bytes=0,
                num_bytes=0,
                bucket=f"{frames}f-{height}x{width}-8fps",
                num_frames=frames,
                height_px=height,
                width_px=width,
                fps=8,
                num_latent_tokens=grid_of(recipe).num_tokens(frames, height, width),
                num_caption_tokens=1,
                caption="",
                sha256="",
            )
        )
    return rows


def recipe_with(**options: Any) -> Recipe:
    recipe = quickstart()
    return dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, **{"capacity": 200} | options))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(str(tmp_path_factory.mktemp("run")))
    run.write_yaml("run.yaml", {"recipe": {"name": "test"}})
    run.write_table("index.parquet", to_table(samples(quickstart()), Sample))
    return run


def test_rejected_samples_and_seconds_are_counted(run: RunFolder) -> None:
    summary = plan(recipe_with(), run_uri=run.uri)
    assert summary["rejected"] == {"too_long": 10}
    assert summary["rejected_seconds"] == {"too_long": 10 * 33 / 8}
    assert summary["num_samples"] == 30
    assert "by_rule" not in summary
    assert "epochs" not in summary


def test_effects_of_rules_are_counted_in_samples_seconds_and_tokens(run: RunFolder) -> None:
    rules = {
        "too_long": "split",
        "sampling_weights": ("images=2", "9f-64x64-8fps=0@epoch<1"),
        "token_keep_rate": ("17f-64x64-8fps=0.5",),
        "max_latent_frames": ("tokens>500=6@epoch<2",),
    }
    summary = plan(recipe_with(**rules), run_uri=run.uri, num_epochs=3)
    assert summary["by_rule"] == {"left_out": 10, "repeated": 10, "cut": 10, "split": 10, "dropped": 10}
    assert summary["by_rule_seconds"]["left_out"] == 10 * 9 / 8
    assert summary["by_rule_seconds"]["split"] == 10 * 33 / 8
    assert summary["rejected"] == {}
    # 6 frames of 64 tokens in two segments, two images, half of 80 tokens
    assert summary["num_segments"] == 10 * (2 + 2 + 1)
    assert summary["kept_tokens"] == 10 * (6 * 64 + 2 * 16 + 40)
    assert summary["dropped_token_fraction"] == pytest.approx(40 / (6 * 64 + 2 * 16 + 80))
    assert [epoch["num_segments"] for epoch in summary["epochs"]] == [50, 60, 10 * (3 + 2 + 1 + 1)]
    assert [epoch["by_rule"].get("left_out", 0) for epoch in summary["epochs"]] == [10, 0, 0]
    assert summary["epochs"][0]["num_steps"] == summary["num_steps"]
    json.dumps(summary)


def test_the_plan_is_the_first_epoch_of_training(run: RunFolder) -> None:
    recipe = recipe_with(
        too_long="split", sampling_weights=("1.5",), token_keep_rate=("beta(3,1)",), max_latent_frames=("3",)
    )
    summary = plan(recipe, run_uri=run.uri)
    rows = samples(recipe)
    latents = [
        np.zeros((1, *grid_of(recipe).latent_shape(row.num_frames, row.height_px, row.width_px)), np.float16)
        for row in rows
    ]
    data = MemorySource(latents, [r.clip_id for r in rows], [""] * len(rows), buckets=[r.bucket for r in rows])
    loader = PackLoader(data, settings=recipe.plan, grid=grid_of(recipe))
    shown = json.loads(run.read_bytes("plan.json"))
    assert shown["hash"] == dataclasses.replace(loader.reader.plans[0], num_ranks=1).hash
    assert shown["pack_tokens"] == [batch.num_tokens for _, batch in zip(range(summary["num_packs"]), loader)]


def test_text_and_page_show_rules_and_epochs(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    summary = plan(
        recipe_with(sampling_weights=("0.5@epoch<1",), token_keep_rate=("0.5",)), run_uri=run.uri, num_epochs=2
    )
    print_summary("plan", summary)
    text = capsys.readouterr().out
    assert re.search(r"rejected seconds +too_long ", text)
    assert re.search(r"by rule +left_out ", text)
    assert re.search(r"dropped tokens +5\d\.\d%", text)
    lines = text.splitlines()
    assert lines[-3].split()[:3] == ["epoch", "steps", "samples"]
    assert lines[-1].split()[:3] == ["1", f"{summary['epochs'][1]['num_steps']}", "30"]
    figures = plan_figures(json.loads(run.read_bytes("plan.json")))
    assert figures is not None
    assert ("Tokens dropped", "50.0%") in figures["named"]
    assert figures["rejected"] == [
        ("too long", summary["rejected"]["too_long"], summary["rejected_seconds"]["too_long"])
    ]
    assert figures["by_rule"][0] == (
        "not in this epoch",
        summary["by_rule"]["left_out"],
        summary["by_rule_seconds"]["left_out"],
    )
    assert len(figures["epochs"]) == 2


def test_token_counts_alone_support_only_some_rules(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.npy"
    np.save(lengths, np.arange(1, 400))
    summary = plan(
        recipe_with(sampling_weights=("tokens>100=0.5",), token_keep_rate=("50/tokens",)), lengths=str(lengths)
    )
    assert summary["by_rule"]["dropped"] > 50
    assert summary["rejected"] == {}
    assert 0 < summary["dropped_token_fraction"] < 1
    for rules, named in (
        ({"sampling_weights": ("images=2",)}, "lack them"),
        ({"max_latent_frames": ("3",)}, "lack them"),
        ({"too_long": "split"}, "lack them"),
        ({"sampling_weights": ("9f-64x64-8fps=2",)}, "do not name them"),
        ({"sampling_weights": ("0",)}, "has no sample"),
    ):
        with pytest.raises(UsageError, match=named):
            plan(recipe_with(**rules), lengths=str(lengths))


def test_wrong_use_is_one_clear_sentence(run: RunFolder) -> None:
    with pytest.raises(UsageError, match="--epochs 0 must be from 1"):
        plan(recipe_with(), run_uri=run.uri, num_epochs=0)
    with pytest.raises(UsageError, match=r"no sample is in bucket 5f-64x64-8fps; there are 17f-64x64-8fps, 1f-"):
        plan(recipe_with(sampling_weights=("5f-64x64-8fps=2",)), run_uri=run.uri)
    other = recipe_with(too_long="split")
    other = dataclasses.replace(other, encode=dataclasses.replace(other.encode, frame_stride=1))
    with pytest.raises(UsageError, match="other strides or another patch"):
        plan(other, run_uri=run.uri)
