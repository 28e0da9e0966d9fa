"""Trained tokenizers that a task-solver is built around."""

from pathlib import Path
from typing import Any, Literal

from ..modeling_ait_vqvae import AiTVQVAEModel
from .recipes import RecipeError


def load_tokenizer(path: str, key: str) -> AiTVQVAEModel:
    """A trained VQ-VAE.

    Args:
        path: its folder.
        key: the recipe's key that names it, for errors.

    Raises:
        FileNotFoundError: the folder holds no model.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = f" Did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise FileNotFoundError(f"{key} {folder} holds no trained VQ-VAE (config.json is missing).{hint}")
    return AiTVQVAEModel.from_pretrained(folder)


def with_tokenizer(values: dict[str, Any], tokenizer: AiTVQVAEModel, kind: Literal["depth", "mask"]) -> dict[str, Any]:
    """Fields of `AiTConfig` that agree with a trained tokenizer.

    Args:
        values: the recipe's fields; of the tokenizer's configuration they may give `tau` alone.
        tokenizer: the VQ-VAE.
        kind: what it tokenizes. Depth models are as large as their maps unless the recipe says otherwise.

    Raises:
        RecipeError: the recipe describes the tokenizer a second time.
    """
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
