"""Usage errors: one clear sentence and exit code 2."""

import re

import pytest

from jobs.cli import main


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("prepare --videos {}/nowhere --out {}/run", "nowhere: no such file or folder"),
        ("prepare --videos {}/empty --out {}/run", "empty: no video file there"),
        ("run --videos {}/clip.mp4 --out {}/run --recipe huge", "no recipe 'huge': known are quickstart, small, base"),
        ("run --videos {}/clip.mp4 --out {}/run --stop-after lunch", "--stop-after 'lunch'"),
        ("caption --run {}/empty", "is not a run folder"),
        ("plan --lengths {}/clip.mp4 --ranks 2 --capacity 10", "not a .npy file of token counts"),
        ("plan --ranks 2 --capacity 10", "pass either --run RUN or --lengths"),
        ("train sculptor --run {}/empty", "train 'sculptor': there are captioner, compressor, dit"),
        ("sample --checkpoint {}/nowhere --prompt hello", "nowhere is not a folder"),
        ("sing --loud", "no command 'sing'"),
    ],
)
def test_wrong_use_is_one_sentence(folder, capsys, arguments, sentence):
    code = main(arguments.replace("{}", str(folder)).split())
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_folder_of_another_recipe_is_an_error(finished_run, videos, capsys):
    code = main(["prepare", "--videos", str(videos), "--out", str(finished_run), "--prepare.max-clip-seconds", "1.5"])
    assert code == 2
    assert "was prepared by recipe 'quickstart' with other prepare settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("magic", "magic"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "open_clip:coca_ViT-B-32/"),
        ("/no/such/folder", "/no/such/folder"),
    ],
)
def test_an_unavailable_captioner_is_one_sentence(finished_run, capsys, monkeypatch, spec, sentence):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(["caption", "--run", str(finished_run), "--captioner", spec, "--set", "other"])
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert sentence in error


def test_a_checkpoint_of_another_model_is_an_error(finished_run, capsys):
    code = main(
        ["caption", "--run", str(finished_run), "--set", "other", "--captioner", str(finished_run / "train/main")]
    )
    assert code == 2
    assert "dit" in capsys.readouterr().err


def test_a_wrong_value_in_run_yaml_is_one_sentence(finished_run, tmp_path, capsys):
    recipe = tmp_path / "run.yaml"
    text = (finished_run / "run.yaml").read_text()
    recipe.write_text(re.sub(r"( +lr: ).*", r"\1fast", text))
    code = main(["prepare", "--videos", str(tmp_path), "--out", str(tmp_path / "out"), "--recipe", str(recipe)])
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert re.fullmatch(r"recaption: train_\w+\.trainer\.lr = 'fast': it takes a valid number", error)


def test_an_unknown_flag_is_a_usage_error(capsys):
    assert main(["verify", "--rum", "x"]) == 2
    assert "--rum" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["", "train"])
def test_without_a_command_the_commands_are_listed(arguments, capsys):
    assert main(arguments.split()) == 2
    assert "recaption train dit " in capsys.readouterr().out
