"""Usage errors: one clear sentence and exit code 2."""

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


def test_an_unknown_flag_is_a_usage_error(capsys):
    assert main(["verify", "--rum", "x"]) == 2
    assert "--rum" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["", "train"])
def test_without_a_command_the_commands_are_listed(arguments, capsys):
    assert main(arguments.split()) == 2
    assert "recaption train dit " in capsys.readouterr().out
