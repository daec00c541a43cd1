"""Scripts: a shot per line, the subject that stays in front of the prompts, and one sentence per wrong line."""

import pytest

from recaption.errors import UsageError
from recaption.prompts.script import Shot, read_script, with_subject, write_script


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("moves left", "a red circle", "a red circle moves left"),
        ("Moves left.", "a red circle.", "a red circle moves left."),
        ("it moves left", "a red circle", "a red circle moves left"),
        ("the sea at night", "a red circle", "a red circle, the sea at night"),
        ("a large red circle on ice", "a red circle", "a large red circle on ice"),
        ("over the sand", "a red circle", "a red circle over the sand"),
        ("", "a red circle", "a red circle"),
        ("moves left", "", "moves left"),
    ],
)
def test_the_subject_is_put_in_front_unless_the_prompt_names_it(prompt, subject, text):
    assert with_subject(prompt, subject) == text


def test_a_subject_stays_until_a_line_changes_it_and_a_script_is_written_as_it_is_read(tmp_path):
    path = tmp_path / "film.jsonl"
    path.write_text(
        '{"prompt": "moves left", "seconds": 2, "subject": "a red circle"}\n\n'
        '{"prompt": "rests", "frames": 17, "transition": "continue", "seed": 0}\n'
        '{"prompt": "the sea", "subject": "", "transition": "dissolve"}\n'
        '{"prompt": "waves"}\n'
    )
    shots = read_script(str(path))
    assert [shot.text for shot in shots] == ["a red circle moves left", "a red circle rests", "the sea", "waves"]
    assert [shot.transition for shot in shots] == ["cut", "continue", "dissolve", "cut"]
    assert [shot.num_frames(8, 9) for shot in shots] == [16, 17, 9, 9]
    assert [shot.seed for shot in shots] == [None, 0, None, None]
    path.write_text(write_script(shots))
    assert read_script(str(path)) == shots
    assert write_script(shots).count("subject") == 2


def test_a_length_in_seconds_is_the_nearest_number_of_frames():
    assert Shot(prompt="a", seconds=0.01).num_frames(8, 9) == 1
    assert [Shot(prompt="a", seconds=round(n / 30, 4)).num_frames(30, 9) for n in range(1, 200)] == list(range(1, 200))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ("\n[1]", "line 2: not an object"),
        ('{"text": "a"}', "line 1: unknown field 'text'"),
        ('{"prompt": 3}', "prompt = 3 is not a text"),
        ('{"prompt": "a", "seconds": -1}', "seconds = -1 is not a number above 0"),
        ('{"prompt": "a", "seconds": NaN}', "seconds = NaN is not a number above 0"),
        ('{"prompt": "a", "seconds": true}', "seconds = true is not a number"),
        ('{"prompt": "a", "frames": 2.5}', "frames = 2.5 is not a whole number"),
        ('{"prompt": "a", "frames": 4, "seconds": 1}', "not in both"),
        ('{"prompt": "a", "transition": "wipe"}', 'transition = "wipe" is not one of cut, continue, dissolve'),
        ('{"prompt": "a", "transition": ["cut"]}', "is not one of cut"),
        ('{"prompt": "a", "transition": "continue"}', "the first shot has nothing before it to continue from"),
        ('{"prompt": " ... "}', "a shot needs a prompt, or a subject"),
        ("\n\n", "has 0 shots"),
    ],
)
def test_a_wrong_line_is_one_sentence_with_its_number(tmp_path, text, message):
    path = tmp_path / "film.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        read_script(str(path))
    assert "\n" not in str(refused.value)


def test_a_script_that_is_missing_or_no_text_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="no such script"):
        read_script(str(tmp_path / "film.jsonl"))
    (tmp_path / "film.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not a text in UTF-8"):
        read_script(str(tmp_path / "film.jsonl"))
