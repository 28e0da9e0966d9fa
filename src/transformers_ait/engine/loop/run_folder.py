"""The folder of a run: new, or that of a run of the same recipe to go on with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from ..recipes.reading import RecipeError, build_recipe, recipe_dict
from ..run_files import partial_text
from .checkpoints import latest_checkpoint_for_all

RECIPE_FILE = "recipe.yaml"
# Keys that a resumed run may change, because they do not change what is learned.
_FREE_RUN_KEYS = {
    "output",
    "resume",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "panels",
    "processes",
}
_DATA_SECTIONS = {"data", "instance_data", "depth_data"}
_FREE_DATA_KEYS = {"in_memory", "num_workers"}


def check_run_folder(recipe: Any, accelerator: Accelerator) -> Path | None:
    """Checkpoint to go on from, None to start; nothing is written.

    Raises:
        FileExistsError: the folder is in use, and the recipe does not resume.
        RecipeError: the recipe resumes a run of another recipe.
    """
    folder = Path(recipe.run.output)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"run.output {folder} is a file; name a folder.")
    stored = folder / RECIPE_FILE
    # A run that was killed at its very start leaves no more than a partial recipe.
    if not folder.exists() or all(path == partial_text(stored) for path in folder.iterdir()):
        return None
    if not recipe.run.resume:
        raise FileExistsError(
            f"run.output {folder} is not empty; add --run.resume true to go on with that run, or name another folder."
        )
    if not stored.exists():
        raise FileExistsError(
            f"run.output {folder} is not empty and holds no run ({RECIPE_FILE}); name another folder."
        )
    # Built anew, so that keys which are younger than the run have their defaults.
    earlier = build_recipe(type(recipe), yaml.safe_load(stored.read_text()), str(stored))
    before, now = (_flatten(recipe_dict(x)) for x in (earlier, recipe))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and not _is_free(key))
    if changed:
        raise RecipeError(
            f"{stored} was started with other values of {', '.join(changed)}; give the same, or start another run."
        )
    return latest_checkpoint_for_all(folder / "checkpoints", accelerator)


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dictionaries."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    parts = (_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items())
    return {key: value for part in parts for key, value in part.items()}


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return (section == "run" and name in _FREE_RUN_KEYS) or (section in _DATA_SECTIONS and name in _FREE_DATA_KEYS)
