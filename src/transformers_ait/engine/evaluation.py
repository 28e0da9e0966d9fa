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

from ..metrics import DEPTH_METRICS
from .checkpoints import replace_text
from .evaluation_depth import DepthEvaluation, mean_metrics
from .evaluation_inputs import Checkpoint, EvaluationSettings, inspect_checkpoint, load_rows
from .evaluation_instances import ObjectEvaluation
from .instance_data import PREFIXES

PACKAGES = ("transformers_ait", "transformers", "accelerate", "datasets", "pycocotools", "faster-coco-eval")
# Those of COCO's and LVIS's figures that a table shows; files hold all.
SHOWN_FIGURES = ("AP", "AP50", "AP75", "APr", "APc", "APf")
KINDS = tuple(PREFIXES.values())
# The main process computes average precision alone, while the others wait.
WAIT = timedelta(hours=6)


@dataclass(frozen=True)
class EvaluationRow:
    """One line of a table.

    Args:
        name: the folder and how it was used.
        task: "depth", "detection" or "instance".
        metrics: figures by name.
        folder: the checkpoint; None for constants.
        seconds: time that it took, reading the data included.
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
    `per_image.csv` and `worst.png`, and for objects `predictions.json`.

    Returns:
        The lines of the tables, depth first; the same in every process.

    Raises:
        EvaluationError: settings, dataset and checkpoints that do not fit together.
        FileNotFoundError: a folder holds no checkpoint, or a file of the dataset is missing.
        RecipeError: a column is missing.
    """
    accelerator = _make_accelerator(settings)
    with accelerator.main_process_first():
        rows = load_rows(settings, settings.split, settings.limit)
        split = settings.baseline_split
        baseline_rows = rows if split is None else load_rows(settings, split, None)
    checkpoints = [inspect_checkpoint(folder, settings.task, rows.column_names) for folder in settings.folders]
    evaluator = _Evaluator(settings, accelerator, checkpoints)
    depth = [checkpoint for checkpoint in checkpoints if checkpoint.task == "depth"]
    objects = [checkpoint for checkpoint in checkpoints if checkpoint.task != "depth"]
    tables: list[tuple[Iterator[EvaluationRow], Sequence[str]]] = []
    if depth:
        on_depth = DepthEvaluation(rows, baseline_rows, settings, accelerator)
        for checkpoint in depth:
            on_depth.check(checkpoint)
        tables.append((evaluator.depth_lines(on_depth, depth), DEPTH_METRICS))
    if objects:
        on_objects = ObjectEvaluation(rows, settings, accelerator)
        for checkpoint in objects:
            on_objects.check(checkpoint)
        tables.append((evaluator.object_lines(on_objects, objects), object_columns(on_objects, objects)))
    if settings.output is not None and accelerator.is_main_process:
        settings.output.mkdir(parents=True, exist_ok=True)
    lines = [line for table, columns in tables for line in evaluator.print_table(table, columns)]
    if settings.output is not None and accelerator.is_main_process:
        _write_results(settings, settings.output, rows, lines, accelerator)
    accelerator.wait_for_everyone()
    return lines


class _Evaluator:
    """Runs the evaluations of one call and names their files."""

    def __init__(
        self, settings: EvaluationSettings, accelerator: Accelerator, checkpoints: Sequence[Checkpoint]
    ) -> None:
        self.settings = settings
        self.accelerator = accelerator
        self.short_names = _short_names([checkpoint.folder for checkpoint in checkpoints])

    def depth_lines(self, evaluation: DepthEvaluation, checkpoints: Sequence[Checkpoint]) -> Iterator[EvaluationRow]:
        """A line per model and way to decode, then the constants."""
        for checkpoint in checkpoints:
            for label, predict in evaluation.contenders(checkpoint):
                start = time.perf_counter()
                name = f"{checkpoint.folder}: {label}"
                per_row = evaluation.measure(predict, name)
                metrics, seconds = mean_metrics(per_row), time.perf_counter() - start
                folder, files = self._files_folder(checkpoint, label), []
                if folder is not None:
                    files = [f"{folder.name}/{file}" for file in evaluation.write(predict, per_row, folder)]
                yield EvaluationRow(name, "depth", metrics, str(checkpoint.folder), seconds, files=files)
        for label, predict in evaluation.constants():
            start = time.perf_counter()
            metrics = mean_metrics(evaluation.measure(predict, label))
            yield EvaluationRow(label, "depth", metrics, seconds=time.perf_counter() - start)

    def object_lines(self, evaluation: ObjectEvaluation, checkpoints: Sequence[Checkpoint]) -> Iterator[EvaluationRow]:
        """A line per model and way to decode."""
        for checkpoint in checkpoints:
            iou_types = evaluation.iou_types(checkpoint)
            for label, predict in evaluation.contenders(checkpoint):
                start = time.perf_counter()
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
                yield EvaluationRow(name, checkpoint.task, metrics, str(checkpoint.folder), seconds, classes, files)

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
    lines: Sequence[EvaluationRow],
    accelerator: Accelerator,
) -> None:
    """`results.json` and `results.md`, each complete or absent."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    environment = describe_environment()
    environment["hardware"] |= {"device": str(accelerator.device), "processes": accelerator.num_processes}
    asked = {name: value for name, value in asdict(settings).items() if name != "output"}
    asked["folders"] = [str(given) for given in settings.folders]
    content = {
        "command": shlex.join(["python", *sys.argv]),
        "date": now,
        **environment,
        "rows": len(rows),
        "settings": asked,
        "results": [_for_json(asdict(line)) for line in lines],
    }
    replace_text(folder / "results.json", json.dumps(content, indent=1) + "\n")
    tables = []
    for is_depth in (True, False):
        group = [line for line in lines if (line.task == "depth") == is_depth]
        if group:
            names = {name for line in group for name in line.metrics}
            figures = [f"{kind}_{figure}" for kind in KINDS for figure in SHOWN_FIGURES]
            columns = DEPTH_METRICS if is_depth else [name for name in figures if name in names]
            tables.append(markdown_table(group, columns))
    data = f"{settings.dataset}, split {settings.split}, {len(rows)} rows"
    replace_text(folder / "results.md", f"{data}, {now[:10]}\n\n" + "\n".join(tables))


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
