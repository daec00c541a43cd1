"""Stories: templates and language models plan shots with lengths, transitions and one subject."""

import json

import numpy as np
import pytest

from recaption.errors import UsageError
from recaption.prompts.expand import load_expander
from recaption.prompts.script import read_script, write_script
from recaption.prompts.story import FilmLengths, parse_plan, plan_by_templates, plan_story, split_subject
from recaption.prompts.style import Example
from recaption.scenes.captions import fields_in, long_caption, short_caption
from recaption.scenes.renderer import render
from tests.stand_ins.chat_server import Script, completion, serving

LENGTHS = FilmLengths(fps=8, shot_frames=9)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    shown = [render(seed, num_frames=9, height_px=32, width_px=32).shots[0].attributes for seed in range(60)]
    return [Example(short_caption(one, rng), long_caption(one, rng)) for one in shown]


FOOTAGE = [
    Example("a brown dog runs", "A brown dog runs across a green field. The sky is clear."),
    Example("a dog sleeps", "A dog sleeps on a sofa. A lamp stands behind it."),
    Example("a black cat", "A black cat jumps onto a wall."),
    Example("a brown dog swims", "A small brown dog swims in a lake near some trees."),
]


@pytest.mark.parametrize(
    ("clause", "subject", "rest"),
    [
        ("A red circle moves left", "a red circle", "moves left"),
        ("two dogs run on the beach", "two dogs", "run on the beach"),
        ("an old man in a coat walks", "an old man", "in a coat walks"),
        ("a red ring stays still", "a red ring", "stays still"),
        ("the dogs run home", "the dogs", "run home"),
        ("the bus stops", "the bus", "stops"),
        ("a dog running home", "a dog", "running home"),
        ("Anna walks to the lake", "Anna", "walks to the lake"),
        ("she walks", "", "she walks"),
        ("waves break", "", "waves break"),
        ("", "", ""),
    ],
)
def test_the_subject_of_a_clause_ends_where_it_does_something(clause, subject, rest):
    assert split_subject(clause) == (subject, rest)


def test_sentences_cut_then_continues_and_finally_dissolves():
    text = "A red circle moves left over the sand, then rests. It crosses the road. Finally it fades."
    shots = plan_by_templates(text, ())
    assert [(shot.transition, shot.text) for shot in shots] == [
        ("cut", "a red circle moves left over the sand"),
        ("continue", "a red circle rests"),
        ("cut", "a red circle crosses the road"),
        ("dissolve", "a red circle fades"),
    ]
    assert {shot.subject for shot in shots} == {"a red circle"}


def test_a_short_story_gets_four_shots_with_what_captions_say_of_its_subject():
    shots = plan_by_templates("A brown dog walks home", FOOTAGE)
    assert [shot.text for shot in shots] == [
        "a brown dog walks home",
        "a brown dog runs across a green field",
        "a brown dog swims in a lake near some trees",
        "a brown dog sleeps on a sofa",
    ]
    without = plan_by_templates("A brown dog walks home", ())
    assert [shot.text for shot in without][1] == "a brown dog walks home, seen from afar"
    assert len({shot.text for shot in without}) == 4


def test_a_story_of_scenes_keeps_its_object_and_colour_in_every_shot(scenes):
    plan = plan_story("A blue star moves right", scenes, "embedded", LENGTHS)
    assert len(plan.shots) >= 4
    assert len({fields_in(shot.text).action for shot in plan.shots}) >= 3
    for shot in plan.shots:
        fields = fields_in(shot.text)
        assert (fields.main_object, fields.colour) == ("star", "blue")
    assert plan.planner == "templates"
    assert plan == plan_story("A blue star moves right", scenes, "none", LENGTHS)


def test_the_lengths_of_a_film_add_up_to_the_frame():
    for fps, film_frames in ((8, 50), (24, 97), (30, 4), (30, 1001)):
        lengths = FilmLengths(fps=fps, shot_frames=17, film_frames=film_frames)
        plan = plan_story("A dog runs. It rests. It eats. It sleeps.", (), None, lengths)
        frames = [shot.num_frames(fps, 17) for shot in plan.shots]
        assert sum(frames) == film_frames
        assert max(frames) - min(frames) <= 1
    with pytest.raises(UsageError, match="a film of 3 frames is too short for 4 shots"):
        plan_story("A dog runs", (), None, FilmLengths(fps=8, shot_frames=9, film_frames=3))


def test_transitions_that_the_model_cannot_make_become_cuts_with_a_note():
    plan = plan_story("A dog runs, then rests. Finally it sleeps.", (), None, LENGTHS, transitions=("cut", "dissolve"))
    assert [shot.transition for shot in plan.shots][:3] == ["cut", "cut", "dissolve"]
    assert plan.notes == ("the model was not trained for continue, so these transitions are cuts",)


def test_words_of_the_subject_that_no_caption_has_are_noted():
    plan = plan_story("A brown axolotl swims", FOOTAGE, None, LENGTHS)
    assert plan.notes == ("the subject 'a brown axolotl' has words that no training caption has: axolotl",)
    assert plan_story("A brown dog swims", FOOTAGE, None, LENGTHS).notes == ()


def test_a_blank_story_is_refused():
    for text in ("", " ... ", "the and"):
        with pytest.raises(UsageError, match="says nothing"):
            plan_story(text, (), None, LENGTHS)


# --- a language model -------------------------------------------------------------------------------------------------

PLANNED = [
    {"subject": "a brown dog", "prompt": "runs across a field", "seconds": 2, "transition": "cut"},
    {"prompt": "stops", "seconds": 1, "transition": "continue"},
    {"prompt": "sleeps on a sofa", "seconds": 1.5, "transition": "dissolve"},
]


@pytest.mark.parametrize(
    "answer",
    [
        "\n".join(map(json.dumps, PLANNED)),
        "Here are the shots:\n```json\n" + "\n".join(map(json.dumps, PLANNED)) + "\n```",
        "```json\n" + json.dumps(PLANNED, indent=1) + "\n```",
        json.dumps(
            {"subject": "a brown dog", "shots": [{k: v for k, v in one.items() if k != "subject"} for one in PLANNED]}
        ),
        ",\n".join(json.dumps(one | {"camera": "still"}) for one in PLANNED),
    ],
)
def test_plans_come_as_lines_an_array_or_an_object(answer):
    shots = parse_plan(answer, "a brown dog runs, then sleeps")
    predicates = "runs across a field", "stops", "sleeps on a sofa"
    assert [shot.text for shot in shots] == [f"a brown dog {predicate}" for predicate in predicates]
    assert [shot.transition for shot in shots] == ["cut", "continue", "dissolve"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "0 shots"),
        ("I cannot do that.", "0 shots"),
        (json.dumps(PLANNED[0]), "1 shots"),
        (json.dumps([{"prompt": "runs"}, {"prompt": "rests"}]), "no subject"),
        (
            json.dumps([{**PLANNED[0], "subject": "a black dog"}, PLANNED[1]]),
            "its subject is black where the story says brown",
        ),
        (json.dumps([PLANNED[0], {"prompt": "rests", "transition": "wipe"}]), "is not one of cut"),
        (json.dumps([PLANNED[0], {"prompt": "runs " * 30}]), "looping"),
        ("[" * 100_000, "0 shots"),
    ],
)
def test_an_answer_that_is_no_plan_is_refused_with_its_reason(answer, reason):
    with pytest.raises(ValueError, match=reason):
        parse_plan(answer, "a brown dog runs")


def test_the_language_model_plans_in_the_words_of_the_captions_and_its_plan_is_a_script(tmp_path):
    script = Script(completion("\n".join(map(json.dumps, PLANNED))))
    with serving(script) as spec:
        lengths = FilmLengths(fps=8, shot_frames=9, film_frames=30)
        plan = plan_story("a brown dog runs, then sleeps", FOOTAGE, load_expander(spec), lengths)
    assert plan.planner == spec
    assert [shot.num_frames(8, 9) for shot in plan.shots] == [13, 7, 10]
    asked = script.requests[0]["messages"]
    assert FOOTAGE[0].caption in asked[0]["content"]
    assert "the film 3.75" in asked[1]["content"]
    (tmp_path / "film.jsonl").write_text(write_script(plan.shots))
    assert read_script(str(tmp_path / "film.jsonl")) == plan.shots


def test_without_a_plan_of_the_language_model_templates_plan_with_a_note():
    with serving(Script(completion("no"))) as spec:
        plan = plan_story("a brown dog runs", FOOTAGE, spec, LENGTHS)
    assert plan.planner == "templates"
    assert plan.shots == plan_story("a brown dog runs", FOOTAGE, None, LENGTHS).shots
    assert plan.notes == (f"the plan by {spec} was rejected, templates plan instead: 0 shots",)
