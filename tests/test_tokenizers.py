"""Folders that a recipe names: the right kind of model, of the right kind of map, or one line that says what came."""

from types import SimpleNamespace

import pytest
import torch

from transformers_ait import AiTVQVAEModel
from transformers_ait.engine.recipes.reading import RecipeError
from transformers_ait.engine.recipes.scripts import DenseModelRecipe, DepthModelRecipe, InstanceModelRecipe
from transformers_ait.engine.recipes.tokenizers import load_tokenizer, with_tokenizer, with_tokenizers
from transformers_ait.engine.tasks.initialization import initialize_from

NORMALS = {"name": "normals", "kind": "normals", "loss_weight": 0.5, "tokenizer_config": {"tau": 0.7}}


@pytest.fixture(scope="module")
def folders(tiny_model, tiny_vqvae_config, tmp_path_factory):
    """A run of a task-solver for depth, and tokenizers of depth, masks and normals."""
    root = tmp_path_factory.mktemp("models")
    tiny_model().save_pretrained(root / "run" / "model")
    AiTVQVAEModel(tiny_vqvae_config()).save_pretrained(root / "depth")
    AiTVQVAEModel(tiny_vqvae_config(symmetric_range=True, ignore_zero=False)).save_pretrained(root / "mask")
    AiTVQVAEModel(tiny_vqvae_config(map_kind="normals", num_codes=10)).save_pretrained(root / "normals")
    return root


def test_a_tokenizer_is_no_start_for_a_task_solver(folders, tiny_model):
    with pytest.raises(RecipeError, match=r"model\.initialize_from .*'ait_vqvae', no task-solver"):
        initialize_from(tiny_model(), str(folders / "depth"))


def test_folders_without_a_model_are_not_looked_for_on_the_hub(folders, tiny_model):
    with pytest.raises(FileNotFoundError, match=r"initialize_from .*config\.json is missing.*Did you mean .*model"):
        initialize_from(tiny_model(), str(folders / "run"))
    with pytest.raises(FileNotFoundError, match="some-user/some-model"):
        initialize_from(tiny_model(), "some-user/some-model")


def test_a_task_solver_lends_the_tokenizer_of_a_task_that_it_has(folders, tiny_model):
    # `from_pretrained` alone would make a tokenizer with random weights of it.
    lent = load_tokenizer(str(folders / "run" / "model"), "model.depth_tokenizer", "depth")
    assert torch.equal(lent.quantizer.codebook, tiny_model().depth_tokenizer.quantizer.codebook)
    for task in ("normals", "instance"):
        with pytest.raises(RecipeError, match=rf"task-solver for \['depth'\], which has no tokenizer of '{task}'"):
            load_tokenizer(str(folders / "run" / "model"), "x", task)


@pytest.mark.parametrize(
    ("task", "own", "other"),
    [("depth", "depth", "mask"), ("instance", "mask", "depth"), ("normals", "normals", "depth")],
)
def test_tokenizers_of_another_kind_are_refused(folders, task, own, other):
    values = {"tasks": [task], **({"dense_tasks": [NORMALS]} if task == "normals" else {})}
    config = load_tokenizer(str(folders / own), "x", task).config
    found = with_tokenizer(values, task, config, "x")
    if task == "normals":
        entry = found["dense_tasks"][0]
        assert entry["tokenizer_config"].tau == 0.7 and entry["tokenizer_config"].num_codes == 10
        assert entry["loss_weight"] == 0.5 and NORMALS["tokenizer_config"] == {"tau": 0.7}
    else:
        assert found[f"num_{own}_codes"] == 12
    assert found.get("image_size") == (None if task == "instance" else 32)
    with pytest.raises(RecipeError, match=rf"x names a tokenizer of .*'{other}', but the task '{task}' .*'{own}'"):
        with_tokenizer(values, task, load_tokenizer(str(folders / other), "x", task).config, "x")


def test_every_task_has_its_tokenizer(folders):
    depth = {"name": "depth", "tokenizer_config": {"tau": 0.8}}
    recipe = DepthModelRecipe(depth_tokenizer=str(folders / "depth"), tokenizers={"normals": str(folders / "normals")})
    values, found = with_tokenizers({"dense_tasks": [NORMALS, depth]}, recipe)
    assert {task: tokenizer.config.kind.name for task, tokenizer in found.items()} == {
        "depth": "depth",
        "normals": "normals",
    }
    assert [entry["tokenizer_config"].tau for entry in values["dense_tasks"]] == [0.7, 0.8]
    assert values["num_depth_codes"] == 12


@pytest.mark.parametrize(
    ("values", "recipe", "words"),
    [
        ({}, DepthModelRecipe(), r"model\.depth_tokenizer is missing.*depth_tokenizer_config"),
        ({}, DenseModelRecipe(), r"model\.tokenizers\.depth is missing.*of kind depth.*ait_bin_tokenizer"),
        ({"dense_tasks": [NORMALS]}, DenseModelRecipe(), r"model\.tokenizers\.normals is missing.*dense_tasks\.0"),
        ({"tasks": ["instance"]}, InstanceModelRecipe(), r"model\.mask_tokenizer is missing.*instance masks.*run\)\.$"),
        ({"tasks": ["detection"]}, InstanceModelRecipe(mask_tokenizer="x"), r"mask_tokenizer is for the task instance"),
        (
            {"dense_tasks": [NORMALS]},
            DenseModelRecipe(tokenizers={"normal": "x"}),
            r"model\.tokenizers\.normal is for the task normal, but .* are \['normals'\]",
        ),
        ({"dense_tasks": ["normals"]}, DenseModelRecipe(), r"dense_tasks must hold sections with a name"),
    ],
)
def test_tokenizers_that_are_missing_or_too_many_are_named(values, recipe, words):
    with pytest.raises(RecipeError, match=words):
        with_tokenizers(values, recipe)


def test_a_trained_tokenizer_is_described_once(folders):
    recipe = SimpleNamespace(tokenizers={"normals": str(folders / "normals")})
    entry = NORMALS | {"tokenizer_config": {"num_codes": 3}}
    with pytest.raises(RecipeError, match=r"dense_tasks\.0\.tokenizer_config may only hold tau.*num_codes"):
        with_tokenizers({"dense_tasks": [entry]}, recipe)
