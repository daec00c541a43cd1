"""Flags, values and docstrings of a tree of settings."""

import dataclasses

import pytest

from jobs.recipe.fields import fields_of, restricted
from jobs.recipe.presets import quickstart
from jobs.recipe.settings import from_dict, to_dict


def test_every_setting_has_a_flag_a_type_and_its_docstring():
    fields = {field.flag: field for field in fields_of(quickstart())}
    fps = fields["--shard.buckets.fps"]
    assert (fps.path, fps.type, fps.value) == ("shard.buckets.fps", "int", 8)
    assert fps.summary == "Frames per second of every sample"
    assert "--name" not in fields
    with_docs = [field for field in fields.values() if field.doc]
    assert len(with_docs) > 0.85 * len(fields)


def test_the_first_sentence_is_not_cut_at_an_abbreviation():
    init_from = next(field for field in fields_of(quickstart()) if field.path == "train_dit.dit.init_from")
    assert (
        dataclasses.replace(init_from, doc="Weights, e.g. of images. Empty: none.").summary == "Weights, e.g. of images"
    )


def test_restricted_settings_hold_the_same_values():
    recipe = quickstart()
    narrow = restricted(recipe, ("plan", "train_dit.dit.patch"))
    assert from_dict(to_dict(narrow)) == recipe
    assert isinstance(narrow, type(recipe))


def test_settings_without_effect_are_no_flags(capsys):
    import tyro

    narrow = restricted(quickstart(), ("plan", "train_dit.dit.patch"))
    parsed = tyro.cli(type(narrow), args=["--plan.pool", "5", "--train-dit.dit.patch", "1", "1", "1"], default=narrow)
    assert (parsed.plan.pool, parsed.train_dit.dit.patch) == (5, (1, 1, 1))
    with pytest.raises(SystemExit):
        tyro.cli(type(narrow), args=["--train-dit.dit.width", "5"], default=narrow)
    assert "--train-dit.dit.width" in capsys.readouterr().err
