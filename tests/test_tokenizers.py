"""Folders that a recipe names: the right kind of model, of the right kind of map, or one line that says what came."""

import pytest

from transformers_ait import AiTVQVAEModel
from transformers_ait.engine.initialization import initialize_from
from transformers_ait.engine.recipes import RecipeError
from transformers_ait.engine.tokenizers import load_tokenizer, with_tokenizer


@pytest.fixture(scope="module")
def folders(tiny_model, tiny_vqvae_config, tmp_path_factory):
    """A run of a task-solver, and tokenizers of depth maps and of masks."""
    root = tmp_path_factory.mktemp("models")
    tiny_model().save_pretrained(root / "run" / "model")
    AiTVQVAEModel(tiny_vqvae_config()).save_pretrained(root / "depth")
    AiTVQVAEModel(tiny_vqvae_config(symmetric_range=True, ignore_zero=False)).save_pretrained(root / "mask")
    return root


def test_a_task_solver_is_no_tokenizer(folders):
    # `from_pretrained` alone would make a tokenizer with random weights of it.
    with pytest.raises(RecipeError, match=r"model\.depth_tokenizer .*'ait', no trained VQ-VAE"):
        load_tokenizer(str(folders / "run" / "model"), "model.depth_tokenizer")


def test_a_tokenizer_is_no_start_for_a_task_solver(folders, tiny_model):
    with pytest.raises(RecipeError, match=r"model\.initialize_from .*'ait_vqvae', no task-solver"):
        initialize_from(tiny_model(), str(folders / "depth"))


def test_folders_without_a_model_are_not_looked_for_on_the_hub(folders, tiny_model):
    with pytest.raises(FileNotFoundError, match=r"initialize_from .*config\.json is missing.*Did you mean .*model"):
        initialize_from(tiny_model(), str(folders / "run"))
    with pytest.raises(FileNotFoundError, match="some-user/some-model"):
        initialize_from(tiny_model(), "some-user/some-model")


@pytest.mark.parametrize(("kind", "other"), [("depth", "mask"), ("mask", "depth")])
def test_tokenizers_of_the_other_kind_are_refused(folders, kind, other):
    values = with_tokenizer({}, load_tokenizer(str(folders / kind), "x"), kind)
    assert values[f"num_{kind}_codes"] == 12
    with pytest.raises(RecipeError, match=rf"model\.{kind}_tokenizer names a tokenizer of {other}.*ignore_zero"):
        with_tokenizer({}, load_tokenizer(str(folders / other), "x"), kind)
