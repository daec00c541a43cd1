"""`sample` with prompts, images and videos, on a stub model."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main, parse
from jobs.recipe.presets import quickstart
from jobs.recipe.settings import SampleSettings
from jobs.report.page import write_report
from jobs.sample.conditioning_media import ConditioningMedia
from jobs.sample.requests import MediaFlags, SampleRequest, requests_from_flags
from jobs.sample.sample import sample_requests, sample_run, sample_videos
from packing.buckets import Bucket
from packing.grid import Grid
from recaption.captions.text import tokenize_words
from recaption.errors import UsageError
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.reader import read_frames
from recaption.video_io.writer import encode_video
from train.checkpoint import step_folder
from train.diffusion.guidance import Guidance
from train.sampling import sampler
from train.sampling.request import SampledVideo


class StandIn(sampler.Sampler):
    """A sampler that generates grey frames."""

    def __init__(self, requests):
        self.requests = requests
        self.buckets = (Bucket(9, 32, 32, 8), Bucket(17, 32, 48, 8))
        self.grid = Grid(frame_stride=4, spatial_stride=8, patch=(1, 1, 1))
        self.tokenizer, self.student, self.stage = SimpleNamespace(frames_per_token=4), None, None

    def sample_requests(self, requests, settings, **_):
        self.requests.extend(requests)
        videos = []
        for request in requests:
            conditioning = request.conditioning
            frames = np.where(conditioning.condition_mask_T[:, None, None, None], conditioning.frames_THWC, 128).astype(
                np.uint8
            )
            span = slice(conditioning.start, conditioning.end)
            videos.append(SampledVideo(video_THWC=frames[span], condition_mask_T=conditioning.condition_mask_T[span]))
        return videos


@pytest.fixture
def requests(monkeypatch):
    """The requests that reached the model."""
    received = []
    monkeypatch.setattr(sampler.Sampler, "from_checkpoint", lambda path, **_: StandIn(received))
    monkeypatch.setattr(step_folder, "find", lambda path: SimpleNamespace(path=path))
    return received


@pytest.fixture
def sampled(requests):
    """The prompts that reached the model."""

    class Texts(list):
        def __iter__(self):
            return (request.text for request in requests)

        def __getitem__(self, index):
            return [request.text for request in requests][index]

        def __len__(self):
            return len(requests)

        def __eq__(self, other):
            return [*self] == other

    return Texts()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """An image, and videos of other sizes and frame rates than the model's."""
    folder = tmp_path_factory.mktemp("media")
    scene = render(7, num_frames=50, height_px=64, width_px=96, fps=24, **SIMPLE)
    Image.fromarray(scene.frames_THWC[0]).save(folder / "first.png")
    Image.fromarray(scene.frames_THWC[-1]).save(folder / "last.jpg")
    (folder / "long.mp4").write_bytes(encode_video(scene.frames_THWC, fps=24))
    (folder / "short.mp4").write_bytes(encode_video(scene.frames_THWC[:12], fps=8))
    return folder


def checkpoint_in(run):
    return str(Path(run.root) / "train" / "main" / "checkpoints" / "step-000010")


def test_a_short_prompt_is_expanded_in_the_style_of_the_captions(run_copy, sampled, capsys):
    summary = sample_videos(checkpoint_in(run_copy), ["a red circle over the sea"], SampleSettings())
    assert summary["prompt"] == "a red circle over the sea"
    assert sampled == [summary["expanded_prompt"]]
    assert len(tokenize_words(sampled[0])) > 15
    assert {"red", "circle", "sea"} <= set(tokenize_words(sampled[0]))
    listed = json.loads((Path(run_copy.root) / "samples" / "main-step-000010" / "samples.json").read_text())
    assert listed["prompts"] == ["a red circle over the sea"]
    assert listed["expanded_prompts"] == sampled
    assert listed["expanders"] == ["embedded"]
    assert sampled[0] in capsys.readouterr().err
    page = Path(write_report(run_copy, quickstart().filters)).read_text()
    assert f"Expanded: {sampled[0].split(chr(34))[0]}" in page  # quotes are escaped there


def test_without_an_expander_the_prompt_is_unchanged(run_copy, sampled):
    settings = SampleSettings(expander="none")
    summary = sample_videos(checkpoint_in(run_copy), ["a red circle", "a blue star"], settings)
    assert sampled == ["a red circle", "a blue star"] == summary["prompt"] == summary["expanded_prompt"]


def test_the_same_prompt_is_sampled_again_only_with_another_expander(run_copy, sampled):
    for expander in ("embedded", "embedded", "none"):
        sample_videos(checkpoint_in(run_copy), ["a red circle"], SampleSettings(expander=expander))
    assert len(sampled) == 2
    assert sampled[1] == "a red circle"


def test_style_examples_can_come_from_a_given_run(run_copy, sampled, tmp_path):
    outside = str(tmp_path / "step-000010")
    plain = sample_videos(outside, ["a red circle"], SampleSettings(), out=str(tmp_path / "a"))
    assert plain["notes"] == ["no captions to take the style from"]
    sample_videos(outside, ["a red circle"], SampleSettings(examples=run_copy.root), out=str(tmp_path / "b"))
    assert sampled[0] == "a red circle"
    assert len(tokenize_words(sampled[1])) > 15


def test_captions_as_prompts_are_not_expanded(run_copy, sampled):
    recipe = dataclasses.replace(quickstart(), sample=SampleSettings())
    sample_run(run_copy, "main/checkpoints/step-000010", recipe, progress=False)
    captions = run_copy.read_table("index.parquet")["caption"].to_pylist()
    assert set(sampled) <= set(captions)


def read_media(media, *, prompts=("it moves",), settings=None, **flags):
    flags = {
        name: tuple(str(media / v) for v in value) if name in ("image", "video") else value
        for name, value in flags.items()
    }
    requests = requests_from_flags(prompts, settings or SampleSettings(expander="none"), media=MediaFlags(**flags))
    return requests[0], ConditioningMedia.read(requests[0], StandIn([]))


def test_an_image_becomes_the_first_frame_at_the_nearest_size_and_crops_are_noted(media):
    request, read = read_media(media, image=("first.png",))
    assert request.mode == "image"
    assert read.conditioning.frames_THWC.shape == (9, 32, 48, 3), "the usual area with the aspect ratio of the image"
    picture = np.asarray(Image.open(media / "first.png").resize((48, 32)))
    assert np.abs(read.conditioning.frames_THWC[0].astype(int) - picture).mean() < 12
    assert read.notes == ()
    _, read = read_media(media, image=("first.png",), settings=SampleSettings(width_px=96))
    assert read.conditioning.frames_THWC.shape == (9, 64, 96, 3)
    assert np.array_equal(read.conditioning.frames_THWC[0], np.asarray(Image.open(media / "first.png")))
    _, read = read_media(media, image=("first.png",), settings=SampleSettings(width_px=32, height_px=32))
    assert read.notes == (
        "first.png (96x64 px, width x height) cropped to the shape of 32x32: 33.3 % of its width is left out",
    )


def test_a_video_is_resampled_to_the_frame_rate_of_the_model(media):
    _, read = read_media(media, video=("long.mp4",), mode="extend", new_frames=8)
    source = read_frames(str(media / "long.mp4"), None).pixels_THWC
    conditioning_frames = read.conditioning.frames_THWC[read.conditioning.condition_mask_T]
    assert len(conditioning_frames) == 13, "2.08 seconds are 16 frames at 8 per second, 13 of them fill groups"
    small = np.asarray(Image.fromarray(source[45]).resize((48, 32)))
    assert np.abs(conditioning_frames[-1].astype(int) - small).mean() < 12
    assert "the first 3 of 16 frames are dropped: the compressor needs whole groups" in read.notes


@pytest.mark.parametrize(
    ("flags", "mode", "num_frames", "num_conditioning"),
    [
        ({}, "text", 9, 0),
        ({"image": ("first.png", "last.jpg")}, "inbetween", 9, 1 + 4),
        ({"image": ("first.png", "last.jpg"), "at_seconds": (0.0, 0.5)}, "inbetween", 9, 1 + 4),
        ({"video": ("short.mp4",), "mode": "extend-back", "new_frames": 4}, "extend-back", 16, 12),
        ({"video": ("short.mp4",), "mode": "edit"}, "edit", 9, 0),
        ({"video": ("short.mp4", "short.mp4")}, "connect", 9 + 8 + 12, 21),
        ({"video": ("short.mp4",), "mode": "loop", "new_frames": 8}, "loop", 9 + 8, 9),
    ],
)
def test_each_mode_has_its_conditioning_frames(media, flags, mode, num_frames, num_conditioning):
    request, read = read_media(media, **flags)
    span = slice(read.conditioning.start, read.conditioning.end)
    assert (
        request.mode,
        len(read.conditioning.condition_mask_T[span]),
        read.conditioning.condition_mask_T[span].sum(),
    ) == (
        mode,
        num_frames,
        num_conditioning,
    )


def test_a_loop_of_a_text_or_an_image_is_closed_at_the_end(media):
    for flags in ({"mode": "loop"}, {"mode": "loop", "image": ("first.png",)}):
        _, read = read_media(media, **flags)
        assert read.loop_frames == read.new_frames == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"video": ("short.mp4",)}, "a single video needs a mode: pass --mode extend"),
        ({"image": ("first.png",), "video": ("short.mp4",)}, "cannot be mixed"),
        ({"image": ("first.png",), "mode": "extend"}, "extend takes one video; got 1 images and 0 videos"),
        ({"image": ("first.png",), "strength": 0.5}, "strength has no effect in mode image"),
        ({"new_frames": 8}, "new_frames has no effect in mode text"),
        ({"video": ("short.mp4",), "mode": "extend", "new_frames": 6}, "new_frames = 6 must be 4 or 8"),
        ({"video": ("short.mp4",), "mode": "edit", "strength": 1.5}, "strength = 1.5"),
        ({"video": ("short.mp4",), "mode": "backwards"}, "unknown mode 'backwards'"),
        ({"image": ("gone.png",)}, "gone.png cannot be used: unreadable"),
        ({"image": ("first.png", "last.jpg"), "at_seconds": (0.0,)}, "has 1 times for 2 images"),
        (
            {"image": ("first.png", "last.jpg"), "at_seconds": (0.0, 9.0)},
            "frame 72 is outside of a video of 9 frames",
        ),
    ],
)
def test_inconsistent_flags_are_one_sentence(media, flags, message):
    with pytest.raises(UsageError, match=message):
        read_media(media, **flags)


def test_num_frames_has_no_effect_with_a_video(media):
    with pytest.raises(UsageError, match="num_frames has no effect in mode extend: new_frames sets"):
        read_media(media, video=("short.mp4",), mode="extend", settings=SampleSettings(num_frames=17))
    with pytest.raises(UsageError, match="nothing to sample from"):
        requests_from_flags((), SampleSettings())


def test_a_prompts_file_mixes_modes_seeds_and_sizes(requests, media, tmp_path):
    shutil.copy(media / "first.png", tmp_path / "first.png")
    lines = [
        {"prompt": "red", "seed": 3, "height_px": 16, "width_px": 64, "num_frames": 5},
        {"prompt": "it moves", "image": "first.png"},
        {"video": str(media / "short.mp4"), "mode": "extend", "new_frames": 4},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    settings = SampleSettings(expander="none", seed=7, num_frames=17)
    resolved = requests_from_flags((), settings, prompts_file=str(tmp_path / "prompts.jsonl"))
    summary = sample_requests(
        str(tmp_path / "step-000010"), resolved, settings, out=str(tmp_path / "out"), progress=False
    )
    assert [request.seed for request in requests] == [3, 7, 7]
    assert [len(request.conditioning.condition_mask_T) for request in requests] == [5, 17, 13]
    assert requests[0].conditioning.frames_THWC.shape == (5, 16, 64, 3)
    assert summary["mode"] == ["text", "image", "extend"]
    assert len(summary["videos"]) == 3
    (tmp_path / "prompts.txt").write_text("red\n\nblue\n")
    assert [a.prompt for a in requests_from_flags((), settings, prompts_file=str(tmp_path / "prompts.txt"))] == [
        "red",
        "blue",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not an object"),
        ('{"text": "red"}', "line 1: unknown field 'text'"),
        ('{"prompt": 3}', "line 1: prompt = 3 is not a text"),
        ('{"prompt": "red", "seed": 1.5}', "line 1: seed = 1.5 is not a whole number"),
        ('{"prompt": "red", "strength": 0.5}', "line 1: strength has no effect"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    with pytest.raises(UsageError, match=message):
        requests_from_flags((), SampleSettings(), prompts_file=str(path))


def test_the_gallery_and_the_sheet_mark_conditioning_frames(requests, run_copy, media):
    settings = SampleSettings(expander="none")
    resolved = [
        SampleRequest(video=(str(media / "short.mp4"),), mode="extend", new_frames=4).resolved(),
        SampleRequest(prompt="bluer", video=(str(media / "short.mp4"),), mode="edit").resolved(),
    ]
    summary = sample_requests(checkpoint_in(run_copy), resolved, settings, progress=False)
    listed = json.loads((Path(run_copy.root) / "samples" / "main-step-000010" / "samples.json").read_text())
    assert listed["modes"] == ["extend", "edit"]
    assert listed["media"] == [["short.mp4"], ["short.mp4"]]
    assert listed["conditioning_frames"] == [[[0, 9]], []]
    assert listed["lengths"] == [13, 9]
    sheet = np.asarray(Image.open(summary["contact_sheet"]))
    for colour in ((0, 160, 60), (40, 90, 220)):
        assert (sheet == colour).all(axis=-1).sum() > 1000
    page = Path(write_report(run_copy, quickstart().filters)).read_text()
    assert "extend of short.mp4, conditioned on frames 1-9 of 13" in page
    assert "edit of short.mp4" in page
    sample_requests(checkpoint_in(run_copy), resolved, settings, progress=False)
    assert len(requests) == 2, "the same request is not sampled twice"
    resolved[0] = dataclasses.replace(resolved[0], new_frames=8)
    sample_requests(checkpoint_in(run_copy), resolved, settings, progress=False)
    assert len(requests) == 4


def test_the_command_takes_media_and_reports_crops(requests, media, tmp_path, capsys):
    flags = [
        "--checkpoint",
        str(tmp_path / "step-000010"),
        "--out",
        str(tmp_path / "out"),
        "--json",
        "--expander",
        "none",
    ]
    code = main(["sample", *flags, "--image", str(media / "first.png"), "--width-px", "32", "--height-px", "32"])
    captured = capsys.readouterr()
    assert code == 0
    summary = json.loads(captured.out)
    assert summary["mode"] == "image"
    assert summary["prompt"] == summary["expanded_prompt"] == ""
    assert "33.3 % of its width is left out" in captured.err
    assert main(["sample", *flags, "--video", str(media / "short.mp4")]) == 2
    assert main(["sample", *flags]) == 2
    assert "pass --prompt, --image, --video or --prompts-file" in capsys.readouterr().err


def test_solver_and_guidance_flags_reach_the_model_and_are_stored(run_copy, requests, monkeypatch, tmp_path):
    reached = []
    sample_requests = StandIn.sample_requests
    monkeypatch.setattr(
        StandIn,
        "sample_requests",
        lambda self, asks, settings, **more: reached.append(settings) or sample_requests(self, asks, settings, **more),
    )
    flags = ["--guidance", "6", "--guidance-interval", "0.1", "0.8", "--guidance-rescale", "0.7", "--solver", "heun"]
    for more in ([], [], flags, [*flags, "--guidance-power", "4"]):
        arguments = ["--checkpoint", checkpoint_in(run_copy), "--prompt", "a red circle", "--out", str(tmp_path), *more]
        parse("sample", arguments)()
    assert len(reached) == 3, "the same command again samples nothing"
    assert reached[0].guidance == Guidance(scale=SampleSettings().guidance)
    assert reached[1].solver == "heun"
    assert reached[2].guidance == Guidance(scale=6, interval=(0.1, 0.8), rescale=0.7, power=4)
    listed = json.loads((tmp_path / "samples.json").read_text())
    assert listed["guidance_interval"] == [0.1, 0.8]
    with pytest.raises(UsageError, match="0 <= low < high <= 1"):
        parse("sample", [*arguments, "--guidance-interval", "0.8", "0.2"])()


def test_seconds_are_exact_to_the_frame_and_long_reaches_the_model(requests, tmp_path, media):
    flags = ["--checkpoint", str(tmp_path / "step-000010"), "--out", str(tmp_path), "--expander", "none"]
    parse("sample", [*flags, "--prompt", "red", "--seconds", "5.25", "--long", "keyframes"])()
    (asked,) = requests
    assert asked.long == "keyframes"
    assert (len(asked.conditioning.condition_mask_T), asked.conditioning.end) == (45, 42)
    listed = json.loads((tmp_path / "samples.json").read_text())
    assert (listed["num_frames"], listed["lengths"], listed["long"]) == (42, [42], "keyframes")
    for more, message in (
        (["--prompt", "red", "--long", "keyframes"], "no effect on videos that fit into one window of 17 frames"),
        (["--prompt", "red", "--seconds", "2", "--num-frames", "9"], "instead of num_frames = 9"),
        (["--prompt", "red", "--seconds", "-1"], "seconds = -1 must be above 0"),
        (
            ["--image", str(media / "first.png"), "--mode", "loop", "--seconds", "2"],
            "seconds has no effect in mode loop",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            parse("sample", [*flags, *more])()


def test_an_inverted_edit_needs_the_caption_of_its_video_and_a_captioner_can_give_it(requests, media, tmp_path):
    flags = ["--checkpoint", str(tmp_path / "step-000010"), "--out", str(tmp_path), "--video", str(media / "short.mp4")]
    edit = [*flags, "--mode", "edit", "--prompt", "a blue cross"]
    parse("sample", [*edit, "--invert", "--source-prompt", "a red circle"])()
    parse("sample", [*edit, "--invert", "--captioner", "tiny"])()
    parse("sample", edit)()
    assert requests[0].conditioning.source_text == "a red circle"
    assert requests[0].text == "a blue cross"
    assert len(tokenize_words(requests[1].conditioning.source_text)) > 8
    assert [request.conditioning.strength for request in requests] == [1.0, 1.0, 0.6]
    assert requests[2].conditioning.source_text is None
    for more, message in (
        ([*edit, "--invert"], "needs the caption of its video: pass --source-prompt, or --captioner tiny"),
        ([*edit, "--source-prompt", "a"], "source_prompt has no effect without invert"),
        ([*flags, "--mode", "extend", "--invert"], "invert has no effect in mode extend"),
    ):
        with pytest.raises(UsageError, match=message):
            parse("sample", more)()
