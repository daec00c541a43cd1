"""run.yaml is checked: types by pydantic, unknown keys by name."""

import pytest

from jobs.recipe.presets import load_recipe, quickstart
from jobs.recipe.settings import from_dict, to_dict
from recaption.errors import UsageError


def with_value(path, value):
    tree = to_dict(quickstart())
    *groups, name = path.split(".")
    group = tree
    for key in groups:
        group = group[key]
    group[name] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("train_dit.trainer.lr", "fast", "train_dit.trainer.lr = 'fast': it takes a valid number"),
        ("train_dit.trainer.lr", None, "train_dit.trainer.lr = None: it takes a valid number"),
        ("train_dit.trainer.num_steps", 2.5, "train_dit.trainer.num_steps = 2.5: it takes a valid integer"),
        ("train_dit.trainer.compile", "maybe", "train_dit.trainer.compile = 'maybe': it takes a valid boolean"),
        ("train_dit.trainer.betas", [0.9, "x"], "train_dit.trainer.betas.1 = 'x': it takes a valid number"),
        ("train_dit.trainer.betas", [0.9], "train_dit.trainer.betas.1 is missing"),
        ("shard.buckets.num_frames", 9, "shard.buckets.num_frames = 9: it takes a list"),
        ("filters.min_motion", "off", "filters.min_motion = 'off': it takes a valid number"),
        ("caption.prompt", 5, "caption.prompt = 5: it takes a valid string"),
        ("plan.policy", "magic", "plan: there is no packing policy 'magic'"),
        ("plan", None, "plan = None: it takes a group of settings"),
        ("train_dit.trainer.learning_rate", 1, "recipe.train_dit.trainer: unknown setting 'learning_rate' (known: acc"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_name(path, value, sentence):
    with pytest.raises(UsageError) as raised:
        from_dict(with_value(path, value))
    assert sentence in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("train_dit.trainer.lr", 1, 1.0),
        ("train_dit.trainer.lr", "1e-3", 0.001),  # what YAML 1.1 makes of 1e-3
        ("shard.buckets.num_frames", [9], (9,)),
        ("filters.min_sharpness", None, None),
    ],
)
def test_what_yaml_makes_of_numbers_and_tuples_is_accepted(path, value, read):
    found = from_dict(with_value(path, value))
    for name in path.split("."):
        found = getattr(found, name)
    assert found == read
    assert type(found) is type(read)


def test_a_file_that_holds_no_settings_is_one_sentence(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("recipe: [1, 2]")
    with pytest.raises(UsageError, match="it takes a group of settings"):
        load_recipe(str(path))
