"""`sample --script` and `--story`: files, exact lengths, what is not sampled again, and what the captioner reads back."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main, parse
from jobs.report.gallery import Media, sample_galleries
from jobs.sample.read_back import Attribute, caption_shots, read_back
from recaption.errors import UsageError
from recaption.prompts.script import read_script
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import SIMPLE, render
from recaption.video_io.reader import probe, read_frames
from tests.stand_ins.small_samplers import small_sampler
from train.checkpoint import step_folder
from train.sampling import sampler as sampling

LINES = [
    {"prompt": "moves left", "seconds": 0.75, "subject": "a red circle"},
    {"prompt": "rests", "frames": 7, "transition": "continue"},
    {"prompt": "the sea at night", "seconds": 1, "transition": "dissolve"},
    {"prompt": "it shines"},
]


@pytest.fixture
def sampled(monkeypatch):
    """Texts of the requests that reached the model, in order."""
    texts = []
    small = small_sampler()
    sample_requests = small.sample_requests

    def recorded(requests, *args, **more):
        texts.extend(request.text for request in requests)
        return sample_requests(requests, *args, **more)

    small.sample_requests = recorded
    monkeypatch.setattr(sampling.Sampler, "from_checkpoint", lambda path, **_: small)
    monkeypatch.setattr(step_folder, "find", lambda path: SimpleNamespace(path=path))
    return texts


def film(tmp_path, lines=None, *more, out="out", captioner="none"):
    if lines is not None:
        (tmp_path / "film.jsonl").write_text("\n".join(map(json.dumps, lines)))
        more = ("--script", str(tmp_path / "film.jsonl"), *more)
    flags = ["--checkpoint", str(tmp_path / "step-000010"), "--out", str(tmp_path / out), "--expander", "none"]
    flags += ["--num-steps", "2", "--captioner", captioner, "--no-progress", *more]
    return parse("sample", flags)()


def test_a_script_becomes_a_film_of_exact_shot_lengths(sampled, tmp_path):
    summary = film(tmp_path, LINES)
    lengths = [6, 7, 8, 5]
    assert probe(summary["film"]).num_frames == sum(lengths)
    assert [probe(path).num_frames for path in summary["videos"][1:]] == lengths
    assert summary["seconds"] == sum(lengths) / 8
    assert summary["prompt"][1:3] == ["a red circle rests", "a red circle, the sea at night"]
    assert summary["prompt"][3] == "a red circle shines"
    told = json.loads((tmp_path / "out" / "story.json").read_text())
    assert [shot["num_frames"] for shot in told["shots"]] == lengths
    assert [shot["start_frame"] for shot in told["shots"]] == [0, 6, 13, 21]
    assert [shot["dissolve"] for shot in told["shots"]] == [None, None, "connected by the model", None]
    joined = read_frames(summary["film"], None).pixels_THWC.astype(int)
    for shot, path in zip(told["shots"], summary["videos"][1:]):
        alone = read_frames(path, None).pixels_THWC.astype(int)
        part = joined[shot["start_frame"] : shot["start_frame"] + shot["num_frames"]]
        assert np.abs(part - alone).mean() < 6
        assert Image.open(tmp_path / "out" / shot["contact_sheet"]).size[0] > 500
    heights = [Image.open(tmp_path / "out" / name).size[1] for name in ("film.png", "shot-0000.png")]
    assert heights[0] > 3 * heights[1]


def test_the_same_film_is_not_sampled_again_and_of_a_changed_one_only_what_changed(sampled, tmp_path):
    film(tmp_path, LINES)
    assert len(sampled) == 4 + 1
    before = (tmp_path / "out" / "film.mp4").read_bytes()
    film(tmp_path, LINES)
    film(tmp_path, None, "--script", str(tmp_path / "out" / "script.jsonl"))
    assert len(sampled) == 5, "its own script is the same film"
    sampled.clear()
    changed = [*LINES[:3], LINES[3] | {"prompt": "it fades"}]
    film(tmp_path, changed)
    assert sampled == ["a red circle fades"]
    sampled.clear()
    film(tmp_path, [LINES[0] | {"seed": 9}, *changed[1:]])
    assert [text for text in sampled if "sea" not in text] == ["a red circle moves left", "a red circle rests"]
    assert len(sampled) == 3, "the shot that continues it, and the dissolve after that"
    frames = list((tmp_path / "out" / "frames").iterdir())
    assert len(frames) == 5, "what no shot uses any more is removed"
    film(tmp_path, LINES)
    assert (tmp_path / "out" / "film.mp4").read_bytes() == before


def test_a_film_that_was_interrupted_goes_on_and_ends_with_the_same_bytes(sampled, tmp_path, monkeypatch):
    film(tmp_path, LINES, out="whole")
    sampled.clear()
    small = sampling.Sampler.from_checkpoint("x", device="cpu")
    recorded = small.sample_requests

    def interrupted(requests, *args, **more):
        if len(sampled) == 2:
            raise KeyboardInterrupt
        return recorded(requests, *args, **more)

    monkeypatch.setattr(small, "sample_requests", interrupted)
    with pytest.raises(KeyboardInterrupt):
        film(tmp_path, LINES)
    assert not (tmp_path / "out" / "film.mp4").exists()
    monkeypatch.setattr(small, "sample_requests", recorded)
    film(tmp_path, LINES)
    assert len(sampled) == 5, "the two finished shots are not sampled again"
    for name in ("film.mp4", "film.png", "shot-0001.mp4"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    damaged = sorted((tmp_path / "out" / "frames").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    (tmp_path / "out" / "film.mp4").unlink()
    film(tmp_path, LINES)
    assert (tmp_path / "out" / "film.mp4").read_bytes() == (tmp_path / "whole" / "film.mp4").read_bytes()


def test_context_guidance_is_for_the_shots_that_have_frames_before_them(sampled, tmp_path):
    lines = [LINES[0] | {"seconds": 0.5}, LINES[1]]
    plain, guided = film(tmp_path, lines), film(tmp_path, lines, "--guidance-context", "2", out="guided")
    first, second = ([Path(path).read_bytes() for path in summary["videos"][1:]] for summary in (plain, guided))
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_a_story_is_planned_as_a_script_that_gives_the_same_film(sampled, tmp_path):
    text = "A red circle moves left, then rests. It shines. Finally it fades."
    summary = film(tmp_path, None, "--story", text, "--seconds", "4.5")
    assert probe(summary["film"]).num_frames == 36
    shots = read_script(summary["script"])
    assert [shot.transition for shot in shots] == ["cut", "continue", "cut", "dissolve"]
    assert [shot.text for shot in shots][1:3] == ["a red circle rests", "a red circle shines"]
    again = film(tmp_path, None, "--script", summary["script"], out="again")
    assert Path(again["film"]).read_bytes() == Path(summary["film"]).read_bytes()
    assert json.loads((tmp_path / "out" / "story.json").read_text())["planner"] == "templates"


def test_the_report_shows_the_film_and_its_shots(sampled, tmp_path):
    checkpoint = tmp_path / "run" / "train" / "main" / "checkpoints" / "step-000010"
    flags = ["--checkpoint", str(checkpoint), "--no-progress", "--num-steps", "1", "--captioner", "none"]
    summary = parse("sample", [*flags, "--story", "A red circle moves left."])()
    assert Path(summary["film"]).parent == tmp_path / "run" / "samples" / "main-step-000010-story"
    run = RunFolder(str(tmp_path / "run"))
    (gallery,) = sample_galleries(run, Media(run))
    assert [prompt for _, _, prompt, *_ in gallery["videos"]] == ["A red circle moves left.", *summary["prompt"]]
    assert gallery["sheet"]


def test_the_subject_is_looked_for_in_the_captions_of_the_shots():
    captions = ["A large red circle moves left.", "A blue circle rests.", "A dog and a red ball.", "The sea."]
    read = read_back(["a red circle", "a red circle", "a brown dog", ""], captions)
    assert [one.is_subject_read for one in read] == [True, False, False, None]
    assert read[1].colour == Attribute("red", "blue")
    assert read[1].object == Attribute("circle", "circle")
    assert read[2].missing_words == ("brown",)
    assert read_back(["a dog"], captions[2:3])[0].is_subject_read


def test_the_captioner_reads_rendered_shots_and_the_film_says_so(sampled, tmp_path, monkeypatch):
    look = {**SIMPLE, "main_object": "star", "colour": "blue", "size": "large", "background": "sand"}
    shown = [render(seed, num_frames=9, height_px=64, width_px=64, fps=8, **look).frames_THWC for seed in (1, 2)]
    captions = caption_shots(shown, "tiny", device="cpu")
    assert [one.is_subject_read for one in read_back(["a blue star"] * 2, captions)] == [True, True]
    monkeypatch.setattr("jobs.sample.story.caption_shots", lambda videos, spec, device: captions + ["A red star."] * 2)
    lines = [LINES[0] | {"subject": "a blue star"}, *LINES[1:]]
    summary = film(tmp_path, lines, captioner="tiny")
    assert (summary["shots_with_subject"], summary["shots_where_subject_was_read"]) == (4, 2)
    told = json.loads((tmp_path / "out" / "story.json").read_text())
    assert told["captioner"] == "tiny"
    assert told["shots"][3]["read_back"]["colour"] == {"asked": "blue", "read": "red"}


def test_wrong_use_is_one_sentence(sampled, tmp_path, capsys):
    for more, message in (
        (("--story", "a dog runs", "--prompt", "a dog"), "a film has its prompts in its script or story"),
        (("--story", "a dog runs", "--script", "film.jsonl"), "pass one of --script and --story"),
        (("--story", ""), "says nothing"),
        (("--script", str(tmp_path / "gone.jsonl")), "no such script"),
        (("--story", "a dog runs", "--conditioning-pixels", "original"), "conditioning_pixels has no effect on a film"),
        (("--story", "a dog runs", "--seconds", "0.3"), "a film of 2 frames is too short for 4 shots"),
    ):
        with pytest.raises(UsageError, match=message):
            film(tmp_path, None, *more)
    with pytest.raises(UsageError, match="a film is sampled from one model"):
        parse("sample", ["--checkpoint", "base", "stage", "--story", "a dog runs"])()
    with pytest.raises(UsageError, match="in a script each line has its own"):
        film(tmp_path, LINES, "--seconds", "3")
    assert main(["sample", "--checkpoint", str(tmp_path), "--script", str(tmp_path / "gone.jsonl")]) == 2
    assert "no such script" in capsys.readouterr().err
    assert sampled == []
