import dataclasses

import pytest
import yaml

from jobs.recipe.presets import RECIPES, load_recipe
from jobs.recipe.settings import from_dict, stage_hashes, to_dict
from recaption.errors import UsageError
from train.backbones.activation_memory import training_memory


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_round_trips_through_yaml(name):
    recipe = load_recipe(name)
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(recipe)))) == recipe


def test_a_run_yaml_is_a_recipe(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"recipe": to_dict(load_recipe("small"))}))
    assert load_recipe(str(path)) == load_recipe("small")


@pytest.mark.parametrize(("name", "device_gb"), [("quickstart", 8), ("small", 24), ("base", 80)])
def test_a_recipe_fits_its_device(name, device_gb):
    """Laptop, one GPU, GPU of a cluster: model state and one full pack take at most half of the memory."""
    recipe = load_recipe(name)
    dit, trainer = recipe.train_dit.dit, recipe.train_dit.trainer
    needed = training_memory(
        width=dit.width, depth=dit.depth, capacity=recipe.plan.capacity, precision=trainer.precision,
        activation_checkpointing=trainer.activation_checkpointing,
    )  # fmt: skip
    assert needed.model_state_bytes + needed.activations_bytes < device_gb / 2 * 1e9


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UsageError, match="quickstart, small, base"):
        load_recipe("huge")


def test_an_unknown_setting_is_an_error_with_its_path():
    tree = to_dict(load_recipe("quickstart"))
    tree["shard"]["buckets"]["colour"] = 3
    with pytest.raises(UsageError, match=r"recipe\.shard\.buckets: unknown setting 'colour'"):
        from_dict(tree)


def changed(recipe, stage, **settings):
    return dataclasses.replace(recipe, **{stage: dataclasses.replace(getattr(recipe, stage), **settings)})


def stages_that_differ(recipe, other):
    before, after = stage_hashes(recipe), stage_hashes(other)
    return {stage for stage in before if before[stage] != after[stage]}


def test_a_threshold_changes_no_hash_and_a_caption_setting_only_its_own():
    recipe = load_recipe("quickstart")
    assert stages_that_differ(recipe, changed(recipe, "filters", max_text_area=0.01)) == set()
    assert stages_that_differ(recipe, changed(recipe, "caption", max_tokens=20)) == {"caption"}
    assert stages_that_differ(recipe, changed(recipe, "prepare", max_clip_seconds=3.0)) == {"prepare"}


def test_a_bucket_table_changes_only_the_hash_of_shards():
    recipe = load_recipe("quickstart")
    tree = to_dict(recipe)
    tree["shard"]["buckets"]["crf"] += 1
    assert stages_that_differ(recipe, from_dict(tree)) == {"shard"}


def test_the_decoder_is_hashed_where_it_decodes_and_its_limits_nowhere():
    recipe = load_recipe("quickstart")

    def with_decode(**settings):
        return changed(recipe, "prepare", decode=dataclasses.replace(recipe.prepare.decode, **settings))

    assert stages_that_differ(recipe, with_decode(backend="decord")) == {"caption", "shard"}
    assert stages_that_differ(recipe, with_decode(max_wall_seconds=9.0)) == set()


def test_device_and_error_budget_are_not_hashed():
    recipe = load_recipe("quickstart")
    assert stages_that_differ(recipe, changed(recipe, "prepare", max_failed_share=0.1)) == set()
    assert stages_that_differ(recipe, changed(recipe, "caption", device="cuda")) == set()
