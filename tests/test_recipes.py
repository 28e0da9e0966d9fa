from pathlib import Path

import pytest
import yaml

from transformers_ait import AiTConfig, AiTVQVAEConfig
from transformers_ait.engine.recipes import (
    DepthRecipe,
    InstanceRecipe,
    RecipeError,
    VQVAERecipe,
    build_config,
    build_recipe,
    describe_recipe,
    load_recipe,
    recipe_dict,
)

RECIPES = Path(__file__).parents[1] / "training" / "recipes"
MINIMAL = {"data": {"dataset": "x"}, "optim": {"lr": 1e-3}, "run": {"output": "o", "batch_size": 4, "steps": 2}}


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return str(path)


def recipe_class(path):
    if path.name.startswith("vqvae"):
        return VQVAERecipe
    return InstanceRecipe if path.stem.endswith(("detection", "instance")) else DepthRecipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_the_project_are_valid(path):
    recipe = load_recipe(recipe_class(path), [str(path)])
    assert build_recipe(type(recipe), recipe_dict(recipe), "itself") == recipe
    if isinstance(recipe, VQVAERecipe):
        build_config(AiTVQVAEConfig, recipe.model.config, str(path))
        return
    values = dict(recipe.model.config)
    # Tokenizers come from --model.depth_tokenizer and --model.mask_tokenizer.
    if "depth" in values["tasks"] and "model_type" not in values["depth_tokenizer_config"]:
        values["depth_tokenizer_config"] = {"model_type": "ait_vqvae", "image_size": 128, "downsample_ratio": 16}
    if "instance" in values["tasks"]:
        values["mask_tokenizer_config"] = {"model_type": "ait_vqvae", "image_size": 32, "downsample_ratio": 8}
    build_config(AiTConfig, values, str(path))


def test_overrides_and_number_syntax(minimal):
    arguments = [minimal, "--optim.lr", "5e-4", "--run.steps=7", "--model.config.tau", "1e-1", "--run.resume", "true"]
    recipe = load_recipe(VQVAERecipe, arguments)
    assert recipe.optim.lr == 5e-4 and isinstance(recipe.optim.lr, float)
    assert recipe.run.steps == 7 and recipe.run.resume is True and recipe.run.batch_size == 4
    assert recipe.model.config == {"tau": 0.1}
    schedule = load_recipe(VQVAERecipe, [minimal, "--optim.schedule.milestones", "[1, 2]"]).optim.schedule
    assert schedule.milestones == [1, 2]
    changed = load_recipe(VQVAERecipe, [minimal, "--run.steps", "null", "--run.epochs", "0.5"])
    assert (changed.run.steps, changed.run.epochs) == (None, 0.5)


def test_overrides_merge_into_the_model_configuration(minimal):
    arguments = [minimal, "--model.config", "{a: {b: 1, c: 2}}", "--model.config.a.b", "3"]
    assert load_recipe(DepthRecipe, arguments).model.config == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optim.lrr", "1"], ["optim.lrr", "Did you mean optim.lr", "command line"]),
        (["--optin.lr", "1"], ["optin ", "Did you mean optim"]),
        (["--optim.schedule.warmup", "1"], ["optim.schedule.warmup ", "warmup_steps"]),
        (["--optim.lr", "high"], ["optim.lr", "minimal.yaml", "float", "'high'"]),
        (["--run.steps", "2.5"], ["run.steps", "2.5"]),
        (["--run.resume", "1"], ["run.resume", "bool"]),
        (["--run.batch_size", "true"], ["run.batch_size", "bool"]),
        (["--run.mixed_precision", "fp8"], ["run.mixed_precision", "bf16", "fp8"]),
        (["--run.epochs", "3"], ["steps=2", "epochs=3"]),
        (["--run.batch_size", "0"], ["batch_size", "positive"]),
        (["--optim", "3"], ["optim", "section"]),
        (["--run.steps"], ["run.steps", "value"]),
        (["run.steps", "3"], ["run.steps", "--"]),
        (["--run.steps", "[1"], ["run.steps", "YAML"]),
    ],
)
def test_errors_name_key_and_place(minimal, arguments, words):
    with pytest.raises(RecipeError) as error:
        load_recipe(VQVAERecipe, [minimal, *arguments])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "run": {**MINIMAL["run"], "log_evry": 3}}))
    with pytest.raises(RecipeError, match=r"run\.log_evry in .*wrong\.yaml does not exist.*run\.log_every"):
        load_recipe(VQVAERecipe, [str(path)])


def test_missing_keys_and_files(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("data: {dataset: x}\n")
    with pytest.raises(RecipeError, match=r"optim is missing in .*short\.yaml"):
        load_recipe(VQVAERecipe, [str(path)])
    path.write_text("data: {}\noptim: {lr: 1.0e-3}\nrun: {}\n")
    with pytest.raises(RecipeError, match=r"data\.dataset is missing"):
        load_recipe(VQVAERecipe, [str(path)])
    path.write_text("just text")
    with pytest.raises(RecipeError, match="mapping"):
        load_recipe(VQVAERecipe, [str(path)])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_recipe(VQVAERecipe, [str(tmp_path / "nowhere.yaml")])
    with pytest.raises(RecipeError, match="first argument"):
        load_recipe(VQVAERecipe, [])


def test_model_configuration_is_checked():
    with pytest.raises(RecipeError, match=r"model\.config\.num_code in here does not exist.*num_codes"):
        build_config(AiTVQVAEConfig, {"num_code": 3}, "here")
    with pytest.raises(RecipeError, match=r"backbone_config\.embed_dims .*embed_dim"):
        build_config(AiTConfig, {"backbone_config": {"model_type": "ait_swinv2", "embed_dims": 3}}, "here")
    with pytest.raises(RecipeError, match=r"model\.config\.num_codes in here .*int"):
        build_config(AiTVQVAEConfig, {"num_codes": "many"}, "here")
    with pytest.raises(RecipeError, match="power of two"):
        build_config(AiTVQVAEConfig, {"downsample_ratio": 3, "image_size": 9}, "here")


def test_help_lists_every_key():
    text = describe_recipe(DepthRecipe)
    assert "--optim.schedule.warmup_steps: int = 0" in text
    assert "--model.depth_tokenizer: str | None = None" in text
    assert "--run.output: str" in text
