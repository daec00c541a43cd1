"""Rendered scenes: the ground truth agrees with the pixels, and captions can be parsed back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recaption.errors import UsageError
from recaption.records import CaptionFields
from recaption.scenes.captions import ATTRIBUTE_VALUES, attribute_in, fields_in, long_caption
from recaption.scenes.dataset import write_scenes
from recaption.scenes.objects import COLOURS, object_trajectory, signed_distance
from recaption.scenes.renderer import SIMPLE, render


def rendered_shots(num: int, **kwargs):
    return [render(seed, num_frames=9, height_px=64, width_px=64, **kwargs).shots[0] for seed in range(num)]


def centre_and_fraction(frame_HWC: np.ndarray, colour: str) -> tuple[float, float, float]:
    """Mean x and y, relative to the frame, and fraction of the frame, of the pixels that have the object's colour."""
    near = np.abs(frame_HWC.astype(int) - COLOURS[colour]).max(-1) < 25
    y, x = np.nonzero(near)
    return x.mean() / frame_HWC.shape[1], y.mean() / frame_HWC.shape[0], near.mean()


def test_no_attribute_value_is_part_of_another():
    values = [value.lower() for options in ATTRIBUTE_VALUES.values() for value in options]
    assert len(values) == len(set(values))
    for a, b in itertools.permutations(values, 2):
        assert not re.search(rf"\b{re.escape(a)}\b", b), (a, b)


def test_attributes_include_the_caption_fields_with_enough_values():
    assert len(ATTRIBUTE_VALUES["main_object"]) >= 8
    assert len(ATTRIBUTE_VALUES["colour"]) >= 8
    assert len(ATTRIBUTE_VALUES["action"]) >= 8
    assert {f.name for f in dataclasses.fields(CaptionFields)} <= set(ATTRIBUTE_VALUES)
    assert set(COLOURS) == set(ATTRIBUTE_VALUES["colour"])


def test_long_captions_parse_back_to_all_attributes():
    rng = np.random.default_rng(0)
    for shot in rendered_shots(200):
        for _ in range(3):
            text = long_caption(shot.attributes, rng)
            assert fields_in(text) == shot.fields, text
            for key in ("camera", "weather", "texture", "size"):
                assert attribute_in(text, key) == getattr(shot.attributes, key), (key, text)
            assert 25 <= len(text.split()) <= 60, text


def test_short_captions_name_only_true_values():
    for shot in rendered_shots(200):
        parsed = dataclasses.asdict(fields_in(shot.short_caption))
        truth = dataclasses.asdict(shot.fields)
        assert {k: v for k, v in parsed.items() if v} == {k: truth[k] for k, v in parsed.items() if v}
        assert parsed["main_object"]
        assert parsed["colour"]
        assert parsed["action"]
        assert len(shot.short_caption.split()) <= 25


def test_every_attribute_value_occurs():
    shots = rendered_shots(300)
    seen = {key: {getattr(shot.attributes, key) for shot in shots} for key in ATTRIBUTE_VALUES}
    for key, options in ATTRIBUTE_VALUES.items():
        assert set(options) <= seen[key], key


def test_fields_in_parses_other_sentences_case_insensitively():
    fields = fields_in("A RED Circle bounces on the grass.")
    assert (fields.colour, fields.main_object, fields.action) == ("red", "circle", "bounces")
    assert fields.background == "grass"
    assert fields.text == fields.style == ""
    assert fields_in("A dog was scattered across the stars") == CaptionFields()


def test_same_seed_same_pixels_other_seed_other_pixels():
    one, two, other = (render(seed, num_frames=5, height_px=64, width_px=80, num_shots=1) for seed in (5, 5, 6))
    assert np.array_equal(one.frames_THWC, two.frames_THWC)
    assert one.shots == two.shots
    assert not np.array_equal(one.frames_THWC, other.frames_THWC)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 12), st.integers(32, 120), st.integers(32, 120), st.sampled_from([1, 29.97])
)
def test_any_size_and_length(seed, num_frames, height_px, width_px, fps):
    scene = render(seed, num_frames=num_frames, height_px=height_px, width_px=width_px, fps=fps)
    assert scene.frames_THWC.shape == (num_frames, height_px, width_px, 3)
    assert scene.frames_THWC.dtype == np.uint8
    if num_frames == 1:
        assert scene.fields.action == "stays still"


@pytest.mark.parametrize("colour", ATTRIBUTE_VALUES["colour"])
def test_object_has_its_colour_and_is_large_enough(colour):
    background = "sky" if colour != "white" else "sea"
    for seed, style in itertools.product(range(4), ("flat", "sepia")):
        scene = render(
            seed, num_frames=9, height_px=96, width_px=128, colour=colour, background=background, style=style,
            weather="clear", text="", surroundings="empty", camera="fixed", texture="plain",
        )  # fmt: skip
        for frame in scene.frames_THWC:
            assert centre_and_fraction(frame, colour)[2] > 0.008


@pytest.mark.parametrize(
    ("action", "axis", "sign"),
    [("moves left", 0, -1), ("moves right", 0, 1), ("moves up", 1, -1), ("moves down", 1, 1)],
)
def test_linear_motion_has_the_direction_of_the_caption(action, axis, sign):
    for seed in range(5):
        constraints = {"action": action, "colour": "red", "background": "sky", **SIMPLE}
        scene = render(seed, num_frames=9, height_px=96, width_px=96, **constraints)
        positions = [centre_and_fraction(frame, "red")[axis] for frame in scene.frames_THWC]
        assert (np.diff(positions) * sign > 0).all()
        assert abs(positions[-1] - positions[0]) > 0.25


def test_other_actions_are_visible_in_the_pixels():
    def track(action, seed=1, **constraints):
        constraints = {"colour": "red", "background": "sky", **SIMPLE} | constraints
        scene = render(seed, num_frames=17, height_px=96, width_px=96, action=action, **constraints)
        return np.asarray([centre_and_fraction(frame, "red") for frame in scene.frames_THWC]), scene

    grows, _ = track("grows")
    assert (np.diff(grows[:, 2]) > 0).all()
    assert grows[-1, 2] > 3 * grows[0, 2]
    shrinks, _ = track("shrinks")
    assert (np.diff(shrinks[:, 2]) < 0).all()
    _, scene = track("stays still")
    assert (scene.frames_THWC == scene.frames_THWC[0]).all()
    bounces, _ = track("bounces")
    assert (np.abs(np.diff(np.sign(np.diff(bounces[:, 1])))) > 1).sum() >= 2  # turns round at least twice
    assert np.ptp(bounces[:, 0]) < 0.02
    loops, _ = track("loops around")
    assert np.ptp(loops[:, 0]) > 0.2
    assert np.ptp(loops[:, 1]) > 0.2
    rotates, scene = track("rotates", main_object="cross")
    assert np.ptp(rotates[:, :2], axis=0).max() < 0.02
    assert (scene.frames_THWC[0] != scene.frames_THWC[8]).any()


def test_camera_motion_moves_the_background():
    def object_positions(camera):
        scene = render(
            3, num_frames=9, height_px=96, width_px=160, camera=camera, action="stays still", background="night",
            surroundings="rocks", text="", style="flat", weather="clear", colour="red", texture="plain",
        )  # fmt: skip
        return np.asarray([centre_and_fraction(frame, "red") for frame in scene.frames_THWC])

    assert (np.diff(object_positions("pans left")[:, 0]) > 0).all()
    assert (np.diff(object_positions("pans right")[:, 0]) < 0).all()
    assert (np.diff(object_positions("zooms in")[:, 2]) > 0).all()
    assert (np.diff(object_positions("zooms out")[:, 2]) < 0).all()


def object_mask(attributes, pose, height_px, width_px):
    """(H, W) float 0..1, antialiased."""
    y, x = np.mgrid[0:height_px, 0:width_px].astype(np.float32) + 0.5
    dx, dy = (x - pose.x_px) / pose.radius_px, (y - pose.y_px) / pose.radius_px
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    distance = signed_distance(attributes.main_object, cos * dx + sin * dy, cos * dy - sin * dx)
    return np.clip(0.5 - distance * pose.radius_px, 0, 1)


def test_object_stays_inside_the_frame():
    for seed in range(60):
        height_px, width_px = ((64, 64), (64, 112), (112, 64))[seed % 3]
        attributes = render(seed, num_frames=12, height_px=height_px, width_px=width_px).shots[0].attributes
        for pose in object_trajectory(attributes, 12, height_px, width_px, 8.0, np.random.default_rng(seed)):
            mask = object_mask(attributes, pose, height_px, width_px)
            border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert border.max() == 0, attributes
            assert mask.mean() > 0.005


@pytest.mark.parametrize("kind", ["cut", "fade", "dissolve"])
def test_transitions_are_where_the_ground_truth_says(kind):
    for seed in range(6):
        scene = render(
            seed, num_frames=72, height_px=64, width_px=96, fps=24, num_shots=3, transition=kind,
            action="stays still", weather="clear", style="flat",
        )  # fmt: skip
        assert len(scene.shots) == 3
        assert [s.start_frame for s in scene.shots] == [0, *scene.cut_frames]
        assert [s.end_frame for s in scene.shots] == [*scene.cut_frames, 72]
        change = np.abs(np.diff(scene.frames_THWC.astype(int), axis=0)).mean((1, 2, 3))
        moving = np.zeros(71, bool)
        for t in scene.transitions:
            moving[t.start_frame - 1 : t.end_frame] = True
            assert t.start_frame <= t.cut_frame <= t.end_frame
            if kind == "fade":
                assert scene.frames_THWC[t.cut_frame - 1 : t.cut_frame + 1].mean() < 40
            assert change[t.start_frame - 1 : t.end_frame].max() > 2
        still = [not s.attributes.camera.startswith(("pans", "zooms")) for s in scene.shots]
        for shot, quiet in zip(scene.shots, still, strict=True):
            inside = ~moving[shot.start_frame : shot.end_frame - 1]
            if quiet:
                assert change[shot.start_frame : shot.end_frame - 1][inside].max(initial=0) == 0


def test_neighbouring_shots_differ():
    for seed in range(20):
        scene = render(seed, num_frames=40, height_px=64, width_px=64, num_shots=4)
        for before, after in itertools.pairwise(scene.shots):
            assert before.attributes.background != after.attributes.background
            assert before.attributes.colour != after.attributes.colour


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"height_px": 16}, "must be >= 32"),
        ({"num_shots": 9, "num_frames": 20}, "at least 36 frames"),
        ({"transition": "wipe"}, "not one of"),
        ({"shape": "circle"}, "unknown attributes"),
        ({"colour": "beige"}, "choose from"),
        ({"colour": "green", "background": "grass", "style": "flat", "weather": "clear"}, "does not stand out"),
        ({"action": "rotates", "main_object": "circle", "texture": "plain"}, "no rotation"),
    ],
)
def test_invalid_arguments_are_explained(kwargs, message):
    with pytest.raises(UsageError, match=message):
        render(0, **kwargs)


def test_constraints_are_respected():
    for seed in range(20):
        fields = render(
            seed, num_frames=6, height_px=64, width_px=64, colour=("red", "blue"), main_object="star", text="STOP"
        ).fields
        assert fields.colour in ("red", "blue")
        assert (fields.main_object, fields.text) == ("star", "STOP")


def test_write_scenes_writes_videos_and_ground_truth(tmp_path):
    pytest.importorskip("recaption.video_io.reader")
    from recaption.video_io.reader import read_frames

    paths = write_scenes(tmp_path, 3, seed=4)
    truth = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert [row["file"] for row in truth] == [path.name for path in paths]
    assert {path.suffix for path in paths} == {".mp4", ".webm"}
    for path, row in zip(paths, truth, strict=True):
        frames = read_frames(str(path), None)
        assert len(frames.pixels_THWC) == row["num_frames"]
        assert frames.pixels_THWC.shape[1:3] == (row["height_px"], row["width_px"])
        assert len(row["shots"]) == len(row["cut_frames"]) + 1
        again = render(
            row["seed"], num_frames=row["num_frames"], height_px=row["height_px"], width_px=row["width_px"],
            fps=row["fps"], num_shots=len(row["shots"]),
        ).frames_THWC  # fmt: skip
        assert np.abs(frames.pixels_THWC.astype(int) - again).mean() < 6
