"""Folders of trained models that a recipe names, and the tokenizers that a task-solver is built around."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ...configuration_ait import AiTConfig
from ...configuration_tokenizers import AiTBinTokenizerConfig, AiTVQVAEConfig
from ...configuration_unipixtask import DenseDecoderConfig
from ...map_kinds_ait import DENSE_KINDS
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ...modeling_ait_vqvae import AiTVQVAEModel
from ...modeling_dense_decoder import DenseDecoderModel
from ...token_vocabulary import DEPTH_TASK
from .reading import RecipeError

INSTANCE_TASK = "instance"
# What the fields of recipe and configuration begin with where these tasks stand outside the table of dense tasks.
PREFIXES = {DEPTH_TASK: "depth", INSTANCE_TASK: "mask"}
VQVAE, SOLVER = {AiTVQVAEConfig.model_type: "trained VQ-VAE"}, {AiTConfig.model_type: "task-solver"}
DENSE_DECODER = {DenseDecoderConfig.model_type: "dense decoder"}


def require_model(path: str, key: str, known: Mapping[str, str]) -> tuple[Path, str]:
    """A folder of a model, which is known to be of the right kind: `from_pretrained` would start another one at random.

    Args:
        path: the folder.
        key: the recipe's key that names it, for errors.
        known: what models are called, by the model type of their configuration.

    Returns:
        The folder, and the model type.

    Raises:
        FileNotFoundError: the folder holds no model.
        OSError: its configuration cannot be read.
        RecipeError: it holds another kind of model.
    """
    folder, what = Path(path), " or ".join(known.values())
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = f" Did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise FileNotFoundError(f"{key} {folder} holds no {what} (config.json is missing).{hint}")
    found = str(PreTrainedConfig.get_config_dict(folder)[0].get("model_type"))
    if found not in known:
        raise RecipeError(f"{key} {folder} holds a model of type {found!r}, no {what}; those are {sorted(known)}.")
    return folder, found


def load_tokenizer(path: str, key: str, task: str) -> PreTrainedModel:
    """A trained tokenizer; of a dense decoder what decodes.

    Args:
        path: folder of a VQ-VAE, for dense tasks also of a dense decoder, or of a task-solver that holds the tokenizer
            of the same task.
        key: the recipe's key that names it, for errors.
        task: what it is for.

    Raises:
        FileNotFoundError: the folder holds no model.
        RecipeError: it holds another kind of model, or a task-solver for other tasks.
    """
    folder, model_type = require_model(path, key, VQVAE | ({} if task == INSTANCE_TASK else DENSE_DECODER) | SOLVER)
    if model_type in VQVAE:
        return AiTVQVAEModel.from_pretrained(folder)
    if model_type in DENSE_DECODER:
        return DenseDecoderModel.from_pretrained(folder).without_encoder()
    model = AiTForDenseAndInstancePrediction.from_pretrained(folder)
    if task not in _with_tokenizer(model.config):
        raise RecipeError(
            f"{key} {folder} is a task-solver for {list(model.config.tasks)}, which has no tokenizer of {task!r}; name "
            "a trained VQ-VAE."
        )
    return model.tokenizer(task)


def load_dense_decoder(recipe: Any, task: str) -> DenseDecoderModel:
    """The dense decoder that a task-solver learns a task's codes from, with its encoded mapping.

    Args:
        recipe: a recipe's `model` section.
        task: a dense task whose tokenizer is a dense decoder.

    Raises:
        FileNotFoundError: the folder holds no model.
        RecipeError: the recipe names none, or what it names only decodes.
    """
    folders, key = tokenizer_folders(recipe), _key(recipe, task)
    lacking = "which makes the training codes of images: a task-solver holds of it only what decodes"
    if task not in folders:
        raise RecipeError(f"{key} is missing: name the folder of the dense decoder, {lacking}.")
    folder, model_type = require_model(folders[task], key, DENSE_DECODER | SOLVER | VQVAE)
    model = DenseDecoderModel.from_pretrained(folder) if model_type in DENSE_DECODER else None
    if model is None or model.encoder is None:
        raise RecipeError(f"{key} {folder} has no encoded mapping; name the folder of the dense decoder, {lacking}.")
    return model.requires_grad_(False).eval()


def tokenizer_folders(recipe: Any) -> dict[str, str]:
    """Folder of every tokenizer that the `model` section of a recipe names, by task."""
    old = {task: getattr(recipe, f"{prefix}_tokenizer", None) for task, prefix in PREFIXES.items()}
    return {task: folder for task, folder in old.items() if folder is not None} | getattr(recipe, "tokenizers", {})


def _lent_tokenizers(values: Mapping[str, Any], recipe: Any, tasks: Sequence[str]) -> dict[str, PreTrainedModel]:
    """Tokenizers that the model which a recipe starts from has for some tasks, where the recipe describes no bins."""
    folder, bins = getattr(recipe, "initialize_from", None), AiTBinTokenizerConfig.model_type
    needed = [task for task in tasks if _tokenizer_fields(values, task)[0].get("model_type") != bins]
    # A folder that is missing is named later, a tokenizer that is missing too comes first.
    if not needed or folder is None or not (Path(folder) / "config.json").is_file():
        return {}
    require_model(folder, "model.initialize_from", SOLVER)
    config = AiTConfig.from_pretrained(folder)
    lent = [] if config.initialization_only else [task for task in needed if task in _with_tokenizer(config)]
    if not lent:
        return {}
    model = AiTForDenseAndInstancePrediction.from_pretrained(folder)
    return {task: model.tokenizer(task) for task in lent}


def _with_tokenizer(config: Any) -> set[str]:
    """Tasks of a task-solver that have a tokenizer."""
    return {*config.dense, *config.object_tasks} & {*config.dense, INSTANCE_TASK}


def with_tokenizers(values: Mapping[str, Any], recipe: Any) -> tuple[dict[str, Any], dict[str, PreTrainedModel]]:
    """Fields of `AiTConfig` that agree with the trained tokenizers which a recipe names, and these by task.

    A task without one takes that of the model which the recipe starts from, where it has one.

    Args:
        values: the recipe's fields.
        recipe: its `model` section.

    Raises:
        FileNotFoundError: a folder holds no model.
        RecipeError: a tokenizer is missing, is one of another kind of map, or is for no task of the model.
    """
    values, folders, kinds = dict(values), tokenizer_folders(recipe), _tokenized_kinds(values)
    for task in folders.keys() - kinds.keys():
        raise RecipeError(
            f"{_key(recipe, task)} is for the task {task}, but the tasks of model.config that have a tokenizer are "
            f"{list(kinds)}; leave it out."
        )
    tokenizers = _lent_tokenizers(values, recipe, [task for task in kinds if task not in folders])
    for task in kinds:
        key = _key(recipe, task)
        if task in folders:
            tokenizers[task] = load_tokenizer(folders[task], key, task)
        elif task in tokenizers:
            key = "model.initialize_from"
        else:
            _require_bins(values, task, key)
            continue
        values = with_tokenizer(values, task, tokenizers[task].config, key)
    return values, tokenizers


def with_tokenizer(values: Mapping[str, Any], task: str, trained: PreTrainedConfig, key: str) -> dict[str, Any]:
    """Fields of `AiTConfig` that agree with one trained tokenizer.

    Args:
        values: the recipe's fields; of the tokenizer's configuration they may give `tau` alone. Models of dense tasks
            are as large as their maps unless the recipe says otherwise.
        task: what the tokenizer is for.
        trained: the tokenizer's configuration.
        key: the recipe's key that names the tokenizer, for errors.

    Raises:
        RecipeError: the tokenizer is for another kind of map, or the recipe describes it a second time.
    """
    kind = _tokenized_kinds(values)[task]
    if trained.kind.name != kind:
        raise RecipeError(
            f"{key} names a tokenizer of maps of kind {trained.kind.name!r}, but the task {task!r} needs one of kind "
            f"{kind!r}; name one that was trained on such maps."
        )
    given, field = _tokenizer_fields(values, task)
    if set(given) - {"tau"}:
        raise RecipeError(
            f"model.config.{field} may only hold tau, since {key} names a trained tokenizer; got {sorted(given)}."
        )
    config = type(trained).from_dict({**trained.to_dict(), **given})
    derived: dict[str, Any] = {} if task == INSTANCE_TASK else {"image_size": config.image_size}
    if task in PREFIXES:
        derived[f"num_{PREFIXES[task]}_codes"] = config.num_codes
    entries = list(values.get("dense_tasks") or [])
    if any(entry["name"] == task for entry in entries):
        filled = [{**entry, "tokenizer_config": config} if entry["name"] == task else entry for entry in entries]
        return {**derived, **values, "dense_tasks": filled}
    return {**derived, **values, field: config}


def _key(recipe: Any, task: str) -> str:
    """The recipe's key of a task's tokenizer."""
    old = f"{PREFIXES[task]}_tokenizer" if task in PREFIXES else ""
    is_old = hasattr(recipe, old) and task not in getattr(recipe, "tokenizers", {})
    return f"model.{old}" if is_old else f"model.tokenizers.{task}"


def _tokenized_kinds(values: Mapping[str, Any]) -> dict[str, str]:
    """Kind of map of every task of a configuration's fields that has a tokenizer."""
    entries = values.get("dense_tasks") or []
    if not all(isinstance(entry, Mapping) and "name" in entry for entry in entries):
        raise RecipeError(f"model.config.dense_tasks must hold sections with a name, got {entries}.")
    kinds = {entry["name"]: entry.get("kind", DEPTH_TASK) for entry in entries}
    for task, kind in kinds.items():
        if kind not in DENSE_KINDS:
            raise RecipeError(f"model.config.dense_tasks: kind of {task!r} must be one of {DENSE_KINDS}, got {kind!r}.")
    tasks = values.get("tasks") or [*kinds] or [DEPTH_TASK]
    outside = {task: kind for task, kind in PREFIXES.items() if task in tasks}
    return outside | kinds


def _tokenizer_fields(values: Mapping[str, Any], task: str) -> tuple[Mapping[str, Any], str]:
    """What the recipe says of a task's tokenizer, and the field below `model.config` where it says so."""
    for place, entry in enumerate(values.get("dense_tasks") or []):
        if entry["name"] == task:
            return entry.get("tokenizer_config") or {}, f"dense_tasks.{place}.tokenizer_config"
    field = f"{PREFIXES[task]}_tokenizer_config"
    return values.get(field) or {}, field


def _require_bins(values: Mapping[str, Any], task: str, key: str) -> None:
    """Raise where a task has neither a trained tokenizer nor one that needs no training."""
    given, field = _tokenizer_fields(values, task)
    if given.get("model_type") == AiTBinTokenizerConfig.model_type and task != INSTANCE_TASK:
        return
    what = "instance masks" if task == INSTANCE_TASK else f"maps of kind {_tokenized_kinds(values)[task]}"
    other = (
        ""
        if task == INSTANCE_TASK
        else f", the folder of a dense decoder of such maps (of run_dense_decoder.py), or set "
        f"{AiTBinTokenizerConfig.model_type} as model_type of model.config.{field}"
    )
    raise RecipeError(
        f"{key} is missing: give the folder of a VQ-VAE that was trained on {what} (the `model` folder of a "
        f"run_vqvae.py run){other}."
    )
