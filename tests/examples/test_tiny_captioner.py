"""Rendering of photo clips and training of the tiny captioner, with synthetic photos and a few steps."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from features import PREPROCESSOR, Components, FrozenFeatureExtractor, Part, fit_components, read_part, write_part
from model_card import evaluate_on_photos, export_weights
from photo_clips import CUT, MOTIONS, photo_clip, read_photos, split_motion, tidy, with_motion
from PIL import Image
from train_tiny import TinySettings, TinyTask

from recaption.captioners.videococa.checkpoint import open_captioner_folder
from recaption.errors import UsageError
from train.captioner.evaluation import matched_auc
from train.engine.settings import TrainerSettings
from train.engine.trainer import train

NUM_PHOTOS = 8
"""As many as there are motions."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "train.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for index in range(NUM_PHOTOS):
            noise = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).resize((224, 224))
            file = io.BytesIO()
            noise.save(file, "PNG")
            text = json.dumps({"captions": [f"Photo {index} , seen by {name} ." for name in ("Ann", "Bob", "Cy")]})
            for suffix, content in ((".png", file.getvalue()), (".json", text.encode())):
                member = tarfile.TarInfo(f"photo{index}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return read_photos(path)


def test_photos_are_read_with_normalised_captions(photos):
    assert len(photos) == NUM_PHOTOS
    assert photos[2].captions[0] == "Photo 2, seen by Ann"
    assert tidy('A  "dog" barks .') == "A dog barks"


def test_a_tar_without_photos_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read_photos(tmp_path / "none.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(UsageError, match="no pair"):
        read_photos(tmp_path / "empty.tar")


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_motion_phrases_are_read_back(motion):
    text = with_motion("A dog runs in the snow", motion, "Two cats sleep")
    assert split_motion(text) == ("A dog runs in the snow", motion)


def test_a_caption_without_a_motion_phrase_is_all_content():
    assert split_motion("A camera on a table.") == ("A camera on a table", "")


@pytest.mark.parametrize(
    ("motion", "dx", "dy"),
    [("pans left", 1, 0), ("pans right", -1, 0), ("pans up", 0, 1), ("pans down", 0, -1)],
)
def test_the_image_moves_against_the_camera(photos, motion, dx, dy):
    """Shift of the image between two frames, by phase correlation."""
    import cv2

    clip = photo_clip(photos, 3, frame_px=96, num_frames=8, motion=motion)
    first, second = (frame.mean(-1).astype(np.float32) for frame in clip.pixels_THWC[[2, 4]])
    (x, y), _ = cv2.phaseCorrelate(first, second, cv2.createHanningWindow((96, 96), cv2.CV_32F))
    assert np.sign(round(x)) == dx
    assert np.sign(round(y)) == dy


def test_fixed_and_cut_clips(photos):
    still = photo_clip(photos, 1, frame_px=64, num_frames=8, motion="fixed").pixels_THWC.astype(int)
    cut = photo_clip(photos, 1, frame_px=64, num_frames=8, motion=CUT)
    changes = np.abs(np.diff(cut.pixels_THWC.astype(int), axis=0)).mean((1, 2, 3))
    assert np.abs(np.diff(still, axis=0)).mean() < 8
    assert (changes > 20).sum() == 1
    assert "Then the video cuts to photo" in cut.captions[0]


def test_the_same_number_is_the_same_clip(photos):
    one, two, other = (photo_clip(photos, number, frame_px=48, num_frames=4) for number in (7, 7, 13))
    np.testing.assert_array_equal(one.pixels_THWC, two.pixels_THWC)
    assert not np.array_equal(one.pixels_THWC, other.pixels_THWC)


def test_matched_auc():
    assert matched_auc(np.eye(4)) == 1.0
    assert matched_auc(-np.eye(4)) == 0.0


@pytest.fixture(scope="module")
def cached(photos, tmp_path_factory):
    import features

    folder = tmp_path_factory.mktemp("features")
    extractor = FrozenFeatureExtractor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "CLIPS_PER_PART", 6)
        clips, _ = features.render_part(Part("photos", 1), photos)
        components = fit_components(clips, extractor)
        for source in ("photos", "scenes"):
            write_part(Part(source, 0), photos, folder, components, extractor)
    return folder, components


SMALL = TinySettings(
    vision_width=32, width=32, text_layers=1, decoder_layers=1, num_queries=3, vocabulary_tokens=400, batch_size=4
)


def test_cached_motion_frames_equal_those_of_the_captioner(cached):
    from recaption.captioners.videococa.two_path import fast_pathway_frames

    folder, _ = cached
    part = read_part(folder, Part("scenes", 0))
    from train.captioner.scene_clips import SceneClips

    clip = SceneClips().clip(0, PREPROCESSOR, num_frames=8).pixels_THWC
    small = fast_pathway_frames(torch.from_numpy(clip).movedim(-1, -3).float()[None])[0].movedim(-3, -1)
    assert np.abs(small.numpy() - part.motion_NTHWC[0]).max() <= 0.51


@pytest.mark.parametrize("sources", [("photos", "scenes"), ("scenes",)])
def test_trains_and_exports(cached, photos, tmp_path, sources):
    folder, components = cached
    task = TinyTask(SMALL, photos, folder, {source: [Part(source, 0)] for source in sources})
    result = train(task, TrainerSettings(num_steps=4, log_every=1, precision="bf16"), str(tmp_path), progress=False)
    assert np.isfinite(result.loss)
    exported = export_weights(task.captioner_config, task.model.state_dict(), components, tmp_path / "out")
    captioner = open_captioner_folder(exported, name="tiny", device="cpu", dtype=None)
    assert not any("head" in name or name.startswith("captioner.") for name in captioner.model.state_dict())
    if "photos" in sources:
        metrics = evaluate_on_photos(captioner, photos)
        assert set(metrics) >= {"cider_d", "motion", "auc", "motion/pans left"}


def test_the_feature_reduction_is_folded_into_the_projection(cached, photos):
    """Full features through the exported projection equal reduced features through the trained one."""
    from model_card import folded_state

    folder, components = cached
    task = TinyTask(SMALL, photos, folder, {"scenes": [Part("scenes", 0)]})
    state = task.model.state_dict()
    folded = folded_state(state, components)
    fine, coarse = torch.randn(3, 448), torch.rand(3, 1280)
    trained = task.model.captioner.coca.visual.project(components.reduce(fine, coarse))
    weight, bias = folded["coca.visual.project.weight"], folded["coca.visual.project.bias"]
    torch.testing.assert_close(torch.cat([fine, coarse], -1) @ weight.T + bias, trained, rtol=1e-3, atol=2e-3)
    assert isinstance(components, Components)
