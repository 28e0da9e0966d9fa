"""Folders of trained models that a recipe names, and the tokenizers that a task-solver is built around."""

from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

from ..configuration_ait import AiTVQVAEConfig
from ..modeling_ait_vqvae import AiTVQVAEModel
from .recipes import RecipeError

TokenizerKind = Literal["depth", "mask"]


def require_model(path: str, key: str, model_type: str, what: str) -> Path:
    """A folder of a model, which is known to be of the right kind: `from_pretrained` would start another one at random.

    Args:
        path: the folder.
        key: the recipe's key that names it, for errors.
        model_type: of its configuration.
        what: what such a model is called.

    Raises:
        FileNotFoundError: the folder holds no model.
        OSError: its configuration cannot be read.
        RecipeError: it holds another kind of model.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = f" Did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise FileNotFoundError(f"{key} {folder} holds no {what} (config.json is missing).{hint}")
    found = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if found != model_type:
        raise RecipeError(f"{key} {folder} holds a model of type {found!r}, no {what}; those are {model_type!r}.")
    return folder


def load_tokenizer(path: str, key: str) -> AiTVQVAEModel:
    """A trained VQ-VAE.

    Args:
        path: its folder.
        key: the recipe's key that names it, for errors.

    Raises:
        FileNotFoundError: the folder holds no model.
        RecipeError: it holds another kind of model.
    """
    return AiTVQVAEModel.from_pretrained(require_model(path, key, AiTVQVAEConfig.model_type, "trained VQ-VAE"))


def with_tokenizer(values: dict[str, Any], tokenizer: AiTVQVAEModel, kind: TokenizerKind) -> dict[str, Any]:
    """Fields of `AiTConfig` that agree with a trained tokenizer.

    Args:
        values: the recipe's fields; of the tokenizer's configuration they may give `tau` alone.
        tokenizer: the VQ-VAE.
        kind: what it tokenizes. Depth models are as large as their maps unless the recipe says otherwise.

    Raises:
        RecipeError: the tokenizer is for the other kind of map, or the recipe describes it a second time.
    """
    config = tokenizer.config
    other, own = ("depth maps", "masks") if kind == "mask" else ("masks", "depth maps")
    if config.ignore_zero if kind == "mask" else config.symmetric_range:
        raise RecipeError(
            f"model.{kind}_tokenizer names a tokenizer of {other} "
            f"(ignore_zero {config.ignore_zero}, symmetric_range {config.symmetric_range} in its config.json); name "
            f"one that was trained on {own}."
        )
    field = f"{kind}_tokenizer_config"
    given = values.get(field) or {}
    if set(given) - {"tau"}:
        raise RecipeError(
            f"model.config.{field} may only hold tau, since model.{kind}_tokenizer names a trained tokenizer; got "
            f"{sorted(given)}."
        )
    stored = {**tokenizer.config.to_dict(), **given}
    derived: dict[str, Any] = {f"num_{kind}_codes": tokenizer.config.num_codes}
    if kind == "depth":
        derived["image_size"] = tokenizer.config.image_size
    return {**derived, **values, field: type(tokenizer.config).from_dict(stored)}
