"""What an evaluation is given, checked before anything is computed."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets.exceptions import DatasetsError
from transformers import AutoConfig, AutoImageProcessor

from ..configuration_ait import AiTConfig, AiTVQVAEConfig
from ..data import SyntheticRooms  # noqa: F401 - importing the package registers its builders

WEIGHT_FILES = ("model*.safetensors*", "pytorch_model*.bin*")
NEEDED_COLUMN = {"depth": "depth", "detection": "objects", "instance": "objects"}
PROCESSOR_FILE = "preprocessor_config.json"


class EvaluationError(ValueError):
    """What was asked for cannot be evaluated; the message names what came, what is allowed, and the way out."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate, and how.

    Args:
        folders: checkpoint folders, as `from_pretrained` reads them.
        dataset: name for `datasets.load_dataset`; columns as `DepthPairs` and `InstanceRows` describe them.
        split: of the dataset, slices such as "test[:50]" included.
        options: further arguments of `load_dataset`.
        task: "depth", "detection" or "instance"; None is what each checkpoint does by default, as far as the dataset
            has the column for it.
        baseline_split: split whose mean and median depth the constant predictions are; None is `split` itself.
        limit: evaluate the first so many rows; None is all.
        batch_size: rows per forward pass and process.
        dtype: "bf16" computes under autocast.
        soft_only: leave out the rows with hard tokens of models made for soft ones.
        nyu_crop: take depth metrics inside rows 45:471 and columns 41:601 of 480 x 640 images.
        annotations: COCO or LVIS annotation file whose categories the data has; None finds that of `coco_instances`.
        panels: images in each picture of the worst cases.
        output: folder for the results; None writes none.

    Raises:
        EvaluationError: a value out of range.
    """

    folders: Sequence[str | Path]
    dataset: str = "synthetic_rooms"
    split: str = "test"
    options: dict[str, Any] = field(default_factory=dict)
    task: str | None = None
    baseline_split: str | None = None
    limit: int | None = None
    batch_size: int = 10
    dtype: Literal["fp32", "bf16"] = "fp32"
    soft_only: bool = False
    nyu_crop: bool = False
    annotations: str | None = None
    panels: int = 6
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise EvaluationError(f"limit must be at least 1, got {self.limit}; leave it out to evaluate every row.")
        if self.batch_size < 1:
            raise EvaluationError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.panels < 0:
            raise EvaluationError(f"panels must be 0 or more, got {self.panels}.")
        if self.dtype not in ("fp32", "bf16"):
            raise EvaluationError(f"dtype must be fp32 or bf16, got {self.dtype!r}.")
        if self.task not in (None, *NEEDED_COLUMN):
            raise EvaluationError(f"task must be one of {list(NEEDED_COLUMN)}, got {self.task!r}.")
        repeated = sorted({str(folder) for folder in self.folders if list(self.folders).count(folder) > 1})
        if repeated:
            raise EvaluationError(f"folders must differ, but {repeated} are given more than once.")
        if self.output is not None and self.output.is_file():
            raise EvaluationError(f"output {self.output} is a file; name a folder.")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that can be evaluated.

    Args:
        folder: the folder.
        config: its configuration.
        task: "depth", "detection" or "instance".
    """

    folder: Path
    config: AiTConfig | AiTVQVAEConfig
    task: str


def load_rows(settings: EvaluationSettings, split: str, limit: int | None) -> datasets.Dataset:
    """Rows of a split.

    Raises:
        EvaluationError: the dataset cannot be loaded, lacks the split, is streamed or has no rows.
    """
    try:
        rows = datasets.load_dataset(settings.dataset, split=split, **settings.options)
    except (ValueError, TypeError, OSError, DatasetsError) as error:
        reason = error.__cause__ or error if isinstance(error, DatasetsError) else error
        raise EvaluationError(f"dataset {settings.dataset!r}, split {split!r}, cannot be loaded: {reason}") from error
    if not isinstance(rows, datasets.Dataset):
        raise EvaluationError(f"dataset {settings.dataset!r} is streamed; leave `streaming` out of the options.")
    if len(rows) == 0:
        raise EvaluationError(f"dataset {settings.dataset!r} has no rows in split {split!r}.")
    return rows.select(range(min(limit or len(rows), len(rows))))


def inspect_checkpoint(folder: str | Path, task: str | None, columns: Sequence[str]) -> Checkpoint:
    """What a folder holds, found without loading its weights.

    Args:
        folder: the folder.
        task: the task asked for, if any.
        columns: of the dataset.

    Raises:
        FileNotFoundError: no folder, no configuration or no weights.
        EvaluationError: another kind of model, untrained weights, or a task that model or dataset does not have.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = f" Did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise FileNotFoundError(f"{folder} holds no checkpoint (config.json is missing).{hint}")
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise FileNotFoundError(
            f"{folder} holds a configuration but no weights (model.safetensors is missing); train the model, or "
            "convert a checkpoint into that folder."
        )
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, TypeError, OSError) as error:
        raise EvaluationError(f"{folder}/config.json cannot be read: {error}") from error
    if not isinstance(config, AiTConfig | AiTVQVAEConfig):
        kinds = [AiTConfig.model_type, AiTVQVAEConfig.model_type]
        raise EvaluationError(f"{folder} is of model_type {config.model_type!r}; this evaluates {kinds}.")
    if getattr(config, "initialization_only", False):
        raise EvaluationError(
            f"{folder} is an initialisation: part of its weights is untrained, so it cannot predict. Train it, then "
            "set initialization_only to false in its config.json."
        )
    return Checkpoint(folder, config, _choose_task(folder, config, task, columns))


def _choose_task(folder: Path, config: AiTConfig | AiTVQVAEConfig, task: str | None, columns: Sequence[str]) -> str:
    if isinstance(config, AiTVQVAEConfig):
        known = ["depth" if config.ignore_zero else "instance"]
    else:
        known = list(dict.fromkeys([str(config.default_task), *config.tasks]))
    if task not in (None, *known):
        raise EvaluationError(f"task must be one of {known}, which {folder} does; got {task!r}.")
    asked = known if task is None else [task]
    usable = [name for name in asked if NEEDED_COLUMN[name] in columns]
    if not usable:
        needed = sorted({NEEDED_COLUMN[name] for name in asked})
        raise EvaluationError(
            f"{folder} does {asked}, which needs the column {' or '.join(map(repr, needed))}; the dataset has "
            f"{list(columns)}."
        )
    return usable[0]


def find_processor(checkpoint: Checkpoint, processor_class: type[Any]) -> Any:
    """Image processor of a kind: the checkpoint's own, or in a joint checkpoint that of the folder named by the task.

    Raises:
        EvaluationError: there is none.
    """
    places = (checkpoint.folder, checkpoint.folder / ("depth" if checkpoint.task == "depth" else "instance"))
    for place in places:
        if (place / PROCESSOR_FILE).is_file():
            processor = AutoImageProcessor.from_pretrained(place)
            if isinstance(processor, processor_class):
                return processor
    raise EvaluationError(
        f"{checkpoint.folder} has no {processor_class.__name__} for the task {checkpoint.task!r}: looked for "
        f"{' and '.join(str(place / PROCESSOR_FILE) for place in places)}; write one with "
        f"{processor_class.__name__}(...).save_pretrained."
    )


def require_package(name: str, purpose: str) -> None:
    """Raise an EvaluationError if an optional package is missing, before it is needed."""
    if importlib.util.find_spec(name) is None:
        raise EvaluationError(f"{purpose} needs {name.replace('_', '-')}: pip install {name.replace('_', '-')}.")
