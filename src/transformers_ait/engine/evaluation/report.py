"""Evaluation of checkpoint folders on a dataset: figures as Markdown and JSON, and files that show what lies behind."""

import json
import math
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from ...metrics import MAP_METRICS
from ..run_files import replace_text
from ..tasks.instance_data import PREFIXES
from .dense import DenseEvaluation, mean_figures
from .inputs import Checkpoint, EvaluationError, EvaluationSettings, inspect_checkpoint, load_rows, require_checkpoint
from .instances import ObjectEvaluation

PACKAGES = ("transformers_ait", "transformers", "accelerate", "datasets", "pycocotools", "faster-coco-eval")
# Those of COCO's and LVIS's figures that a table shows; files hold all.
SHOWN_FIGURES = ("AP", "AP50", "AP75", "APr", "APc", "APf")
KINDS = tuple(PREFIXES.values())
INSTALLED_AS = ("transformers-ait", "transformers-ait.exe", "__main__.py")
# The main process computes average precision alone, while the others wait.
WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class EvaluationRow:
    """One line of a table.

    Args:
        name: the folder, its task where it has several, and how it was used.
        task: what was evaluated; of constants the column.
        metrics: figures by name.
        folder: the checkpoint; None for constants.
        seconds: time that it took for all dense tasks of the checkpoint together, reading the data included.
        classes: names that only one of model and data has.
        files: what was written, relative to the folder of results.
    """

    name: str
    task: str
    metrics: dict[str, float]
    folder: str | None = None
    seconds: float = 0.0
    classes: dict[str, list[str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def run_evaluation(settings: EvaluationSettings) -> list[EvaluationRow]:
    """Evaluate all folders, print their tables, and write the results where settings name a folder.

    Everything that can be wrong with the arguments is found before the first model runs. The rows are shared out over
    all processes that `accelerate launch` or torchrun started, and the figures do not depend on their number.

    The folder of results gets `results.json`, `results.md`, and for each model and way to decode a folder with
    `per_image.csv` and `worst.png`, and for objects `predictions.json` and `errors.json`.

    Returns:
        The lines of the tables, those of dense tasks first; the same in every process.

    Raises:
        EvaluationError: settings, dataset and checkpoints that do not fit together.
        FileNotFoundError: a folder holds no checkpoint, or a file of the dataset is missing.
        RecipeError: a column is missing.
    """
    for folder in settings.folders:
        require_checkpoint(Path(folder))  # before data is prepared, which may take hours
    accelerator = _make_accelerator(settings)
    with accelerator.main_process_first():
        rows = load_rows(settings, settings.split, settings.limit)
        split = settings.baseline_split
        baseline_rows = rows if split is None else load_rows(settings, split, None)
    checkpoints = [inspect_checkpoint(folder, settings, rows.column_names) for folder in settings.folders]
    unknown = settings.columns.keys() - {task for checkpoint in checkpoints for task in checkpoint.dense}
    if unknown:
        raise EvaluationError(f"columns names {sorted(unknown)}, which are no dense tasks that are evaluated.")
    evaluator = _Evaluator(settings, accelerator, checkpoints)
    dense = [checkpoint for checkpoint in checkpoints if checkpoint.dense]
    objects = [checkpoint for checkpoint in checkpoints if checkpoint.objects]
    tables: list[tuple[Iterator[EvaluationRow], Sequence[str]]] = []
    if dense:
        on_maps = DenseEvaluation(rows, baseline_rows, dense, settings, accelerator)
        for checkpoint in dense:
            on_maps.check(checkpoint)
        tables += evaluator.dense_tables(on_maps, dense)
    if objects:
        on_objects = ObjectEvaluation(rows, settings, accelerator)
        for checkpoint in objects:
            on_objects.check(checkpoint)
        tables.append((evaluator.object_lines(on_objects, objects), object_columns(on_objects, objects)))
    if settings.output is not None and accelerator.is_main_process:
        settings.output.mkdir(parents=True, exist_ok=True)
    printed = [(evaluator.print_table(table, columns), columns) for table, columns in tables]
    if settings.output is not None and accelerator.is_main_process:
        _write_results(settings, settings.output, rows, printed, accelerator)
    accelerator.wait_for_everyone()
    return [line for lines, _ in printed for line in lines]


class _Evaluator:
    """Runs the evaluations of one call and names their files."""

    def __init__(
        self, settings: EvaluationSettings, accelerator: Accelerator, checkpoints: Sequence[Checkpoint]
    ) -> None:
        self.settings = settings
        self.accelerator = accelerator
        self.short_names = _short_names([checkpoint.folder for checkpoint in checkpoints])

    def dense_tables(
        self, evaluation: DenseEvaluation, checkpoints: Sequence[Checkpoint]
    ) -> list[tuple[Iterator[EvaluationRow], Sequence[str]]]:
        """Lines and figures of each column's table: a line per model and way to decode, then the constants."""
        measured: dict[Path, list[tuple[str, EvaluationRow]]] = {}
        several = len(evaluation.targets) > 1

        def lines(column: str) -> Iterator[EvaluationRow]:
            for checkpoint in checkpoints:
                if any(target.column == column for target in checkpoint.dense.values()):
                    if checkpoint.folder not in measured:
                        measured[checkpoint.folder] = list(self._dense_lines(evaluation, checkpoint))
                    yield from (line for of_column, line in measured[checkpoint.folder] if of_column == column)
            target = evaluation.targets[column]
            for label, predict in evaluation.constants(column):
                start = time.perf_counter()
                statistics = evaluation.measure(predict, {column: target}, label)[column]
                metrics, seconds = mean_figures(column, target, statistics), time.perf_counter() - start
                yield EvaluationRow(f"{column}: {label}" if several else label, column, metrics, seconds=seconds)

        return [(lines(column), MAP_METRICS[target.kind.metric].names) for column, target in evaluation.targets.items()]

    def _dense_lines(self, evaluation: DenseEvaluation, checkpoint: Checkpoint) -> Iterator[tuple[str, EvaluationRow]]:
        """Column and line of every task and way to decode; each way predicts a row once for all tasks."""
        for label, predict in evaluation.contenders(checkpoint):
            start = time.perf_counter()
            of_task = evaluation.measure(predict, checkpoint.dense, f"{checkpoint.folder}: {label}")
            seconds = time.perf_counter() - start
            for task, statistics in of_task.items():
                target, name = checkpoint.dense[task], _label(checkpoint, task, label)
                metrics = mean_figures(task, target, statistics)
                folder, files = self._files_folder(checkpoint, name), []
                if folder is not None:
                    written = evaluation.write(predict, task, target, statistics, folder)
                    files = [f"{folder.name}/{file}" for file in written]
                name, place = f"{checkpoint.folder}: {name}", str(checkpoint.folder)
                yield target.column, EvaluationRow(name, task, metrics, place, seconds, files=files)

    def object_lines(self, evaluation: ObjectEvaluation, checkpoints: Sequence[Checkpoint]) -> Iterator[EvaluationRow]:
        """A line per model and way to decode."""
        for checkpoint in checkpoints:
            iou_types = evaluation.iou_types(checkpoint)
            for mode, predict in evaluation.contenders(checkpoint):
                start, task = time.perf_counter(), str(checkpoint.objects)
                label = _label(checkpoint, task, mode)
                name = f"{checkpoint.folder}: {label}"
                metrics, found = evaluation.measure(predict, iou_types, name)
                seconds = time.perf_counter() - start
                folder, files = self._files_folder(checkpoint, label), []
                if folder is not None:
                    form = "segm" if "segm" in iou_types else "bbox"
                    files = [f"{folder.name}/{file}" for file in evaluation.write(found, form, folder)]
                classes = {}
                if hasattr(checkpoint.config, "tasks"):
                    match = evaluation.match(checkpoint)
                    classes = {"unknown_to_the_model": match.unknown, "not_in_the_data": match.unused}
                yield EvaluationRow(name, task, metrics, str(checkpoint.folder), seconds, classes, files)

    def print_table(self, lines: Iterator[EvaluationRow], columns: Sequence[str]) -> list[EvaluationRow]:
        """Print every line as soon as it is there."""
        done = []
        if self.accelerator.is_main_process:
            print("\n".join(_table_head(columns)), flush=True)
        for line in lines:
            done.append(line)
            if self.accelerator.is_main_process:
                print(_table_line(line, columns), flush=True)
        return done

    def _files_folder(self, checkpoint: Checkpoint, label: str) -> Path | None:
        """Folder for the files of one line, in the main process alone."""
        if self.settings.output is None or not self.accelerator.is_main_process:
            return None
        name = f"{self.short_names[checkpoint.folder]} {label}"
        folder = self.settings.output / re.sub(r"[^A-Za-z0-9._]+", "-", name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _label(checkpoint: Checkpoint, task: str, label: str) -> str:
    """How a checkpoint was used; with the task where several of its tasks are evaluated."""
    return f"{task}: {label}" if len(checkpoint.tasks) > 1 else label


def object_columns(evaluation: ObjectEvaluation, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Figures that the table of these checkpoints shows."""
    measured = {PREFIXES[x] for checkpoint in checkpoints for x in evaluation.iou_types(checkpoint)}
    figures = SHOWN_FIGURES if evaluation.is_lvis else SHOWN_FIGURES[:3]
    return [f"{kind}_{figure}" for kind in KINDS if kind in measured for figure in figures]


def markdown_table(lines: Sequence[EvaluationRow], columns: Sequence[str]) -> str:
    """Markdown table with a line per model; figures that a model does not have are dashes."""
    return "\n".join([*_table_head(columns), *(_table_line(line, columns) for line in lines)]) + "\n"


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, for JSON."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    hardware = {"cpu": _cpu_name(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        hardware["accelerator"] = torch.cuda.get_device_name()
    return {"versions": versions, "hardware": hardware}


def _command_line(words: Sequence[str]) -> str:
    """What was typed; of the command `transformers-ait`, Python knows the place of its file instead."""
    program = ["transformers-ait"] if Path(words[0]).name in INSTALLED_AS else ["python", words[0]]
    return shlex.join([*program, *words[1:]])


def _make_accelerator(settings: EvaluationSettings) -> Accelerator:
    return Accelerator(
        # Without this, processes that torchrun starts on CPUs do not find each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision="bf16" if settings.dtype == "bf16" else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each folder, numbered where two would have the same."""
    names = {}
    for folder in folders:
        parts = folder.resolve().parts
        names[folder] = "-".join(parts[-2:]) if parts[-1] == "model" else parts[-1]
    repeated = len(set(names.values())) < len(names)
    return {x: f"{number}-{name}" if repeated else name for number, (x, name) in enumerate(names.items(), start=1)}


def _table_head(columns: Sequence[str]) -> list[str]:
    names = [column.replace("_AP", " AP") for column in columns]
    return ["| model | " + " | ".join(names) + " |", "|---|" + "---|" * len(columns)]


def _table_line(line: EvaluationRow, columns: Sequence[str]) -> str:
    values = [line.metrics.get(column, math.nan) for column in columns]
    return f"| {line.name} | " + " | ".join("-" if math.isnan(x) else f"{x:.3f}" for x in values) + " |"


def _write_results(
    settings: EvaluationSettings,
    folder: Path,
    rows: datasets.Dataset,
    tables: Sequence[tuple[Sequence[EvaluationRow], Sequence[str]]],
    accelerator: Accelerator,
) -> None:
    """`results.json` and `results.md`, each complete or absent."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    environment = describe_environment()
    environment["hardware"] |= {"device": str(accelerator.device), "processes": accelerator.num_processes}
    asked = {name: value for name, value in asdict(settings).items() if name != "output"}
    asked["folders"] = [str(given) for given in settings.folders]
    content = {
        "command": _command_line(sys.argv),
        "date": now,
        **environment,
        "rows": len(rows),
        "settings": asked,
        "results": [_for_json(asdict(line)) for lines, _ in tables for line in lines],
    }
    replace_text(folder / "results.json", json.dumps(content, indent=1) + "\n")
    written = [markdown_table(lines, columns) for lines, columns in tables]
    data = f"{settings.dataset}, split {settings.split}, {len(rows)} rows"
    replace_text(folder / "results.md", f"{data}, {now[:10]}\n\n" + "\n".join(written))


def _for_json(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, Mapping):
        return {name: _for_json(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
