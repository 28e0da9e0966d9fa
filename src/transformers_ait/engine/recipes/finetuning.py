"""Going on with a trained task-solver: what a recipe does not say is taken from the model's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoImageProcessor, PreTrainedConfig

from ...configuration_ait import AiTConfig
from .reading import RecipeError, check_config_keys
from .scripts import SolverModelRecipe
from .tokenizers import INSTANCE_TASK, PREFIXES, SOLVER, require_model

Model = TypeVar("Model", bound=SolverModelRecipe)
KEY = "model.finetune"
PROCESSOR_FILE = "preprocessor_config.json"


def complete_model(recipe: Model) -> Model:
    """The `model` section of a recipe with all that follows from its `finetune`; without one it comes back as it is.

    Returns:
        A section whose `config` holds every field of `AiTConfig` but the tokenizers, which follow from
        `initialize_from`.

    Raises:
        FileNotFoundError: the folder holds no model.
        OSError: its configuration cannot be read.
        RecipeError: it holds another kind of model, or one without the tasks asked for or without image processor.
    """
    if recipe.finetune is None:
        return recipe
    folder, _ = require_model(recipe.finetune, KEY, SOLVER)
    earlier = AiTConfig.from_pretrained(folder)
    config = inherited_config(earlier, recipe.config, str(folder))
    start: dict[str, Any] = {"config": config, "initialize_from": recipe.finetune, "finetune": None}
    if hasattr(recipe, "initialize_decoder"):
        start["initialize_decoder"] = True
    if recipe.image_mean is None:
        start |= _normalization(folder, config["tasks"][0])
    return replace(recipe, **start)


def inherited_config(earlier: AiTConfig, given: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Fields of `AiTConfig` for some of the tasks of an earlier model, without what its tokenizers say.

    Args:
        earlier: configuration of that model.
        given: fields that differ, sections of sub-configurations among them; `tasks` may leave some out.
        folder: what errors call the model.

    Raises:
        RecipeError: a task that the model does not do, or a key that does not exist.
    """
    learnt = list(earlier.tasks or ())
    tasks = list(given.get("tasks") or learnt)
    _check_tasks(learnt, tasks, folder)
    common = {field.name for field in fields(PreTrainedConfig)}
    values = {field.name: getattr(earlier, field.name) for field in fields(AiTConfig) if field.name not in common}
    for prefix in PREFIXES.values():
        del values[f"{prefix}_tokenizer_config"]
    dense = [task for task in tasks if task in earlier.dense]
    entries = [spec for spec in earlier.dense_tasks if spec.name in tasks]
    values |= {
        "tasks": tasks,
        "dense_tasks": [
            {"name": x.name, "kind": x.kind, "loss_weight": x.loss_weight, "aux_weight": x.aux_weight} for x in entries
        ],
        "default_task": earlier.default_task if earlier.default_task in tasks else None,
        "parallel": bool(earlier.parallel and dense),
        "initialization_only": False,
        "id2label": earlier.id2label,
        "label2id": earlier.label2id,
    }
    if earlier.coordinate_scale == earlier.image_size:
        values["coordinate_scale"] = None
    for name, value in given.items():
        section = values.get(name)
        is_section = isinstance(value, Mapping) and isinstance(section, PreTrainedConfig)
        values[name] = _changed(section, value, name) if is_section else value
    return values


def _changed(config: Any, given: Mapping[str, Any], name: str) -> PreTrainedConfig:
    """A sub-configuration with other values."""
    changed = type(config).from_dict({**config.to_dict(), **given})
    check_config_keys(changed, given, "the recipe", f"model.config.{name}")
    return changed


def _check_tasks(earlier: Sequence[str], tasks: Sequence[str], folder: str) -> None:
    # Every sequence of instances holds one of detection.
    known = [*earlier, *(["detection"] if INSTANCE_TASK in earlier and "detection" not in earlier else [])]
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise RecipeError(
            f"{KEY} {folder} is a model for {known}, but model.config.tasks are {list(tasks)}; a new task needs a "
            "recipe with model.initialize_from."
        )


def _normalization(folder: Path, task: str) -> dict[str, list[float]]:
    """Mean and standard deviation that a folder's image processor for a task uses."""
    place = folder / task if (folder / task / PROCESSOR_FILE).is_file() else folder
    if not (place / PROCESSOR_FILE).is_file():
        raise RecipeError(
            f"{KEY} {folder} has no {PROCESSOR_FILE}, which says how its images are normalised; give model.image_mean "
            "and model.image_std."
        )
    processor = AutoImageProcessor.from_pretrained(place)
    if not processor.do_normalize:
        return {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
