"""What an evaluation is given, checked before anything is computed."""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoImageProcessor

from ...configuration_ait import AiTConfig
from ...configuration_plain_dense import AiTPlainDenseConfig
from ...configuration_tokenizers import AiTVQVAEConfig
from ...configuration_unipixtask import DenseDecoderConfig
from ...data import SyntheticRooms  # noqa: F401 - importing the package registers its builders
from ...map_kinds_ait import MAP_KINDS, MapKind
from ..tasks.dense_decoder import map_name

WEIGHT_FILES = ("model*.safetensors*", "pytorch_model*.bin*")
OBJECTS_COLUMN = "objects"
Config = AiTConfig | AiTVQVAEConfig | AiTPlainDenseConfig | DenseDecoderConfig
PROCESSOR_FILE = "preprocessor_config.json"


class EvaluationError(ValueError):
    """What was asked for cannot be evaluated; the message names what came, what is allowed, and the way out."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate, and how.

    Args:
        folders: checkpoint folders, as `from_pretrained` reads them.
        dataset: name for `datasets.load_dataset`; columns as `DenseRows` and `InstanceRows` describe them.
        split: of the dataset, slices such as "test[:50]" included.
        options: further arguments of `load_dataset`.
        task: what to evaluate; None is every dense task of a checkpoint that the dataset has the column for, and the
            first such task of objects. Of a tokenizer it is the name of its maps, by default that of their kind.
        columns: dense task -> column with its truth; by default a column has the task's name.
        baseline_split: split whose mean and median the constant predictions are; None is `split` itself.
        limit: evaluate the first so many rows; None is all.
        batch_size: rows per forward pass and process.
        dtype: "bf16" computes under autocast.
        soft_only: leave out the rows with hard tokens of models made for soft ones.
        nyu_crop: measure maps inside rows 45:471 and columns 41:601 of 480 x 640 images.
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
    columns: dict[str, str] = field(default_factory=dict)
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
        repeated = sorted({str(folder) for folder in self.folders if list(self.folders).count(folder) > 1})
        if repeated:
            raise EvaluationError(f"folders must differ, but {repeated} are given more than once.")
        if self.output is not None and self.output.is_file():
            raise EvaluationError(f"output {self.output} is a file; name a folder.")


@dataclass(frozen=True)
class DenseTarget:
    """A dense task of a checkpoint, and the truth for it.

    Args:
        kind: what the maps' values mean.
        channels: of the tokenizer form.
        column: of the dataset.
        class_names: of maps of classes.
    """

    kind: MapKind
    channels: int
    column: str
    class_names: Sequence[str] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A folder that can be evaluated.

    Args:
        folder: the folder.
        config: its configuration.
        dense: the dense tasks to evaluate by name.
        objects: the task of objects to evaluate, if any.
    """

    folder: Path
    config: Config
    dense: Mapping[str, DenseTarget]
    objects: str | None

    @property
    def tasks(self) -> list[str]:
        """All that is evaluated."""
        return [*self.dense, *([] if self.objects is None else [self.objects])]


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


def require_checkpoint(folder: Path) -> None:
    """Look for the files of a checkpoint, which takes no time.

    Raises:
        FileNotFoundError: no folder, no configuration or no weights.
    """
    if not (folder / "config.json").is_file():
        inner = folder / "model"
        hint = f" Did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise FileNotFoundError(f"{folder} holds no checkpoint (config.json is missing).{hint}")
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        raise FileNotFoundError(
            f"{folder} holds a configuration but no weights (model.safetensors is missing); train the model, or "
            "convert a checkpoint into that folder."
        )


def inspect_checkpoint(folder: str | Path, settings: EvaluationSettings, columns: Sequence[str]) -> Checkpoint:
    """What a folder holds, found without loading its weights.

    Args:
        folder: the folder.
        settings: the task asked for, if any, and the columns of dense tasks.
        columns: of the dataset.

    Raises:
        FileNotFoundError: no folder, no configuration or no weights.
        EvaluationError: another kind of model, untrained weights, or a task that model or dataset does not have.
    """
    folder = Path(folder)
    require_checkpoint(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, TypeError, OSError, StrictDataclassError) as error:
        raise EvaluationError(f"{folder}/config.json cannot be read: {error}") from error
    if not isinstance(config, Config):
        kinds = [allowed.model_type for allowed in get_args(Config)]
        raise EvaluationError(f"{folder} is of model_type {config.model_type!r}; this evaluates {kinds}.")
    if not getattr(config, "has_encoder", True):
        raise EvaluationError(
            f"{folder} is a dense decoder without encoded mapping (has_encoder is false in its config.json): it makes "
            "no codes of images. Evaluate the whole one, as run_dense_decoder.py writes it."
        )
    if getattr(config, "initialization_only", False):
        raise EvaluationError(
            f"{folder} is an initialisation: part of its weights is untrained, so it cannot predict. Train it, then "
            "set initialization_only to false in its config.json."
        )
    return _choose_tasks(folder, config, settings, columns)


def _choose_tasks(folder: Path, config: Config, settings: EvaluationSettings, columns: Sequence[str]) -> Checkpoint:
    dense, objects = _known_tasks(config, settings)
    known = [*dense, *objects]
    if settings.task not in (None, *known):
        raise EvaluationError(f"task must be one of {known}, which {folder} does; got {settings.task!r}.")
    asked = known if settings.task is None else [settings.task]
    needed = {task: target.column for task, target in dense.items()} | dict.fromkeys(objects, OBJECTS_COLUMN)
    absent = [task for task in asked if task in settings.columns and needed[task] not in columns]
    usable = [task for task in asked if needed[task] in columns]
    if absent or not usable:
        names = sorted({needed[task] for task in absent or asked})
        example = json.dumps({(absent or asked)[0]: "COLUMN"})
        raise EvaluationError(
            f"{folder} does {absent or asked}, which needs the column {' or '.join(map(repr, names))}; the dataset has "
            f"{list(columns)}. A map's column of another name is given by --columns '{example}'."
        )
    chosen = [task for task in objects if task in usable]
    return Checkpoint(folder, config, {x: dense[x] for x in dense if x in usable}, chosen[0] if chosen else None)


def _known_tasks(config: Config, settings: EvaluationSettings) -> tuple[dict[str, DenseTarget], list[str]]:
    """Dense tasks, and tasks of objects with the default one first."""
    if isinstance(config, AiTVQVAEConfig):
        if config.kind is MAP_KINDS["mask"]:
            return {}, ["instance"]
        task, channels = settings.task or config.kind.name, cast(int, config.num_channels)
        names = config.class_names if config.kind.has_scores else None
        return {task: DenseTarget(config.kind, channels, settings.columns.get(task, task), names)}, []
    if isinstance(config, DenseDecoderConfig):
        task, channels = map_name(config), cast(int, config.num_channels)
        names = config.class_names if config.kind.has_scores else None
        return {task: DenseTarget(config.kind, channels, settings.columns.get(task, task), names)}, []
    dense = {
        task: DenseTarget(spec.map_kind, cast(int, spec.channels), settings.columns.get(task, task), spec.class_names)
        for task, spec in config.dense.items()
    }
    objects = getattr(config, "object_tasks", [])
    return dense, sorted(objects, key=lambda task: task != config.default_task)


def find_processor(checkpoint: Checkpoint, processor_class: type[Any], maps: Iterable[str] = ()) -> Any:
    """An image processor of the checkpoint's: its own, or in a joint checkpoint that of a subfolder.

    Args:
        checkpoint: the checkpoint.
        processor_class: what the processor must be.
        maps: dense tasks that it must know.

    Raises:
        EvaluationError: there is none.
    """
    maps = set(maps)
    for file in [checkpoint.folder / PROCESSOR_FILE, *sorted(checkpoint.folder.glob(f"*/{PROCESSOR_FILE}"))]:
        if file.is_file():
            processor = AutoImageProcessor.from_pretrained(file.parent)
            if isinstance(processor, processor_class) and maps <= set(getattr(processor, "map_kinds", maps)):
                return processor
    name = processor_class.__name__
    raise EvaluationError(
        f"{checkpoint.folder} has no {name} for {sorted(maps) or [checkpoint.objects]}: no {PROCESSOR_FILE} in it or a "
        f"subfolder is of one; write it with {name}(...).save_pretrained."
    )


def require_package(name: str, purpose: str) -> None:
    """Raise an EvaluationError if an optional package is missing, before it is needed."""
    if importlib.util.find_spec(name) is None:
        raise EvaluationError(f"{purpose} needs {name.replace('_', '-')}: pip install {name.replace('_', '-')}.")
