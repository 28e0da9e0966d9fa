"""Recipes: typed settings of a training run, read from YAML and the command line.

    training/run_depth.py training/recipes/tiny-rooms-depth.yaml --optim.lr 5e-4 --model.config.parallel true

Unknown keys and wrong types are errors that name the key and the file; they are found before anything is written.
A value that starts with ??? has to come from the command line; what follows the marks says what to give. Where the
command line names another dataset, the file's keys that describe its own (`DATASET_KEYS`) do not hold for it.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

Recipe = TypeVar("Recipe")
Config = TypeVar("Config", bound=PreTrainedConfig)
MISSING_VALUE = "???"
DATASET_KEYS = ("options", "columns", "train_columns", "train_split", "eval_split")


class RecipeError(ValueError):
    """A recipe names something that does not exist, or gives a value that is not allowed."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; here it is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def load_recipe(recipe_class: type[Recipe], arguments: Sequence[str]) -> Recipe:
    """Recipe of a command line: a YAML file, then overrides `--dotted.key value` or `--dotted.key=value`.

    Raises:
        FileNotFoundError: there is no such file.
        RecipeError: a key does not exist, a value has the wrong type or is not allowed, or the syntax is wrong.
    """
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError("The first argument must be a recipe, a YAML file such as those in training/recipes.")
    path = Path(arguments[0])
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {path}; recipes are in training/recipes.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no text in UTF-8 ({error}); give a YAML file.") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path} must hold a mapping of sections (data, optim, run ...), got {type(values).__name__}."
        )
    _check_keys(recipe_class, values, str(path))
    overrides = _parse_overrides(arguments[1:])
    given: dict[str, Any] = {}
    for key, value in overrides:
        override: Any = value
        for part in reversed(key.split(".")):
            override = {part: override}
        _check_keys(recipe_class, override, "the command line")
        given = _merge(given, override)
    values = _merge(_without_other_datasets(values, given), given)
    _require_values(values, str(path))
    return build_recipe(recipe_class, values, f"{path} with the command line's overrides" if overrides else str(path))


def build_recipe(recipe_class: type[Recipe], values: Mapping[str, Any], source: str, path: str = "") -> Recipe:
    """Recipe of nested dictionaries.

    Args:
        recipe_class: a dataclass of `recipe_models` or `joint_recipe`, or one of their sections.
        values: its fields; sections are dictionaries.
        source: what to call the origin of the values in errors.
        path: dotted key of `values` in the whole recipe.

    Raises:
        RecipeError: as `load_recipe`.
    """
    if not path:
        _check_keys(recipe_class, values, source)
    arguments: dict[str, Any] = {}
    for entry in dataclasses.fields(recipe_class):  # type: ignore[arg-type]
        key = f"{path}.{entry.name}" if path else entry.name
        if entry.name in values:
            value = values[entry.name]
            nested = dataclasses.is_dataclass(entry.type)
            meant = build_recipe(entry.type, value, source, key) if nested else _spelled(value, entry.type)  # type: ignore
            arguments[entry.name] = meant
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{key} is missing in {source}; set it there or give --{key} on the command line.")
    return _instantiate(recipe_class, arguments, source, path)


def recipe_dict(recipe: Any) -> dict[str, Any]:
    """Nested dictionaries of a recipe, which `build_recipe` takes back."""
    return dataclasses.asdict(recipe)


def build_config(config_class: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Model configuration of a recipe's dictionary; unlike `config_class(**values)`, unknown keys are errors.

    Raises:
        RecipeError: a key does not exist, or a value has the wrong type or is not allowed.
    """
    config = _instantiate(config_class, dict(values), source, "model.config")
    check_config_keys(config, values, source, "model.config")
    return config


def describe_recipe(recipe_class: type, prefix: str = "") -> str:
    """One line per key with its type and default, for --help."""
    lines = []
    for entry in dataclasses.fields(recipe_class):
        if dataclasses.is_dataclass(entry.type):
            lines.append(describe_recipe(entry.type, f"{prefix}{entry.name}."))  # type: ignore[arg-type]
            continue
        kind = entry.type.__name__ if isinstance(entry.type, type) else str(entry.type).replace("typing.", "")
        default = "" if entry.default is dataclasses.MISSING else f" = {entry.default!r}"
        lines.append(f"  --{prefix}{entry.name}: {kind}{default}")
    return "\n".join(lines)


def run_from_command_line(
    recipe_class: type[Recipe],
    run: Callable[[Recipe], Any],
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Body of a training script: read the recipe, run it; help on request, one line for what the user can correct.

    Args:
        recipe_class: of the recipe.
        run: what to do with it.
        description: shown above the keys in the help.
        arguments: words of the command line; None takes those of this process.

    Raises:
        SystemExit: with status 2, where the user can correct what is wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print(f"{description}\nKeys:\n{describe_recipe(recipe_class)}")
        return
    disable_progress_bar()
    try:
        run(load_recipe(recipe_class, arguments))
    except (RecipeError, OSError, FloatingPointError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def parse_yaml(text: str, source: str) -> Any:
    """Values of YAML in which 1e-3 is a number; a RecipeError where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not valid YAML: {error}") from error


def _parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    overrides, rest = [], list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise RecipeError(f"{flag!r} is not an override; write --section.key value.")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise RecipeError(f"--{key} needs a value; write --{key} value.")
            text = rest.pop(0)
        overrides.append((key, parse_yaml(text, f"The value of --{key}")))
    return overrides


def _spelled(value: Any, kind: Any) -> Any:
    """YAML 1.1 reads a bare `no` as False; where "no" is one of the choices, it is what was meant."""
    choices = [choice for part in (kind, *get_args(kind)) for choice in get_args(part)]
    return "no" if value is False and "no" in choices else value


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `override`; dictionaries merge, everything else is replaced."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _without_other_datasets(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A file's values without the keys of datasets that the command line replaces."""
    kept = dict(values)
    for name, section in values.items():
        override = given.get(name)
        if not isinstance(section, Mapping) or not isinstance(override, Mapping) or "dataset" not in section:
            continue
        if override.get("dataset", section["dataset"]) != section["dataset"]:
            kept[name] = {key: value for key, value in section.items() if key not in DATASET_KEYS}
    return kept


def _require_values(values: Mapping[str, Any], source: str, path: str = "") -> None:
    """Raise at the first value that the command line should have given."""
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            _require_values(value, source, key)
        elif isinstance(value, str) and value.startswith(MISSING_VALUE):
            wanted = value.removeprefix(MISSING_VALUE).strip()
            raise RecipeError(f"{key} is missing in {source}: {wanted}; give it with --{key} VALUE.")


def _check_keys(recipe_class: type, values: Any, source: str, path: str = "") -> None:
    """Raise at the first key that the recipe, or a section of it, does not have."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{path} in {source} must be a section of keys, got {values!r}.")
    entries = {entry.name: entry.type for entry in dataclasses.fields(recipe_class)}
    for name, value in values.items():
        if name not in entries:
            raise _unknown_key(str(name), path, list(entries), source)
        if dataclasses.is_dataclass(entries[name]):
            _check_keys(entries[name], value, source, f"{path}.{name}" if path else str(name))  # type: ignore[arg-type]


def check_config_keys(config: PreTrainedConfig, values: Mapping[str, Any], source: str, path: str) -> None:
    """Raise a RecipeError at the first key of nested dictionaries that a configuration does not have.

    Args:
        config: made from `values`.
        values: fields of it.
        source: what to call the origin of the values in errors.
        path: dotted key of `values` in the whole recipe.
    """
    fields = [entry.name for entry in dataclasses.fields(config)]
    # Some configurations keep a field private and take it through a property, as timm's out_indices.
    known = [
        name.lstrip("_") if isinstance(getattr(type(config), name.lstrip("_"), None), property) else name
        for name in fields
    ]
    for name, value in values.items():
        # Backbones of transformers take `out_indices` through a property that no field stands behind.
        settable = getattr(getattr(type(config), name, None), "fset", None) is not None
        if name not in known and name != "model_type" and not settable:
            raise _unknown_key(name, path, known, source)
        sub_config = getattr(config, name)
        if isinstance(value, Mapping) and isinstance(sub_config, PreTrainedConfig):
            check_config_keys(sub_config, value, source, f"{path}.{name}")
    for place, entry in enumerate(values.get("dense_tasks") or []):
        tokenizer = entry.get("tokenizer_config")
        if isinstance(tokenizer, Mapping):
            key = f"{path}.dense_tasks.{place}.tokenizer_config"
            check_config_keys(config.dense[entry["name"]].tokenizer_config, tokenizer, source, key)


def _unknown_key(name: str, path: str, known: list[str], source: str) -> RecipeError:
    prefix = f"{path}." if path else ""
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(prefix + key for key in close)}?" if close else f"Keys: {', '.join(known)}."
    return RecipeError(f"{prefix}{name} in {source} does not exist. {hint}")


def _instantiate(target: type[Any], arguments: dict[str, Any], source: str, path: str) -> Any:
    """`target(**arguments)` with errors that say which key of which file is at fault."""
    try:
        return target(**arguments)
    except StrictDataclassFieldValidationError as error:
        name = re.search(r"field '(\w+)'", str(error))
        key = ".".join(part for part in (path, name[1] if name else "") if part)
        # Of a list's entry the cause says which, and its own cause why.
        reasons = [str(x) for x in (error.__cause__, getattr(error.__cause__, "__cause__", None)) if x is not None]
        raise RecipeError(f"{key} in {source} has a value that is not allowed: {': '.join(reasons)}") from error
    except (StrictDataclassClassValidationError, ValueError, TypeError) as error:
        raise RecipeError(f"{path or 'The recipe'} in {source} is not valid: {error.__cause__ or error}") from error
