"""A checkpoint to a folder of exported files, written only once they compute what the model computes."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..configuration_ait import AiTConfig
from ..configuration_checks_ait import CONFIG_FILE, check_json
from ..modeling_ait import AiTForDenseAndInstancePrediction
from .metadata import (
    PROCESSOR_FILE,
    grammar_metadata,
    image_metadata,
    in_one_pass,
    output_metadata,
    processor_path,
    write_metadata,
)
from .parts import TOLERANCE, Deviation, build_parts, check_parts
from .programs import SUFFIXES, open_part, require_packages, write_part

# Batches that an export with a variable batch is checked with; 1, because exporters like to take it for a constant.
CHECKED_BATCHES = (1, 3)
MAX_BATCH = 2**16


@dataclass
class Report:
    """What an export wrote and how far it is from the model.

    Args:
        output: the folder written.
        files: part -> file name.
        deviations: what was compared.
    """

    output: Path
    files: dict[str, str]
    deviations: list[Deviation]

    def __str__(self) -> str:
        lines = [f"{x.quantity}, batch {x.batch}: at most {x.maximum:.1e} from the model" for x in self.deviations]
        return "\n".join([*lines, f"Written to {self.output}: {', '.join(self.files.values())}."])


def export_checkpoint(
    folder: str | Path,
    output: str | Path,
    *,
    file_format: str = "onnx",
    task: str | None = None,
    batch: int | None = None,
) -> Report:
    """Export a task-solver in float32, whatever the checkpoint's precision.

    A dense task of a parallel model becomes one file from image to map; any other becomes `encoder`, `step` and
    `detokenizer`, which the loop of `driver.py` joins. `export.json` and `preprocessor_config.json` go beside them.

    Args:
        folder: a checkpoint folder of this family, with its image processor.
        output: folder to write; must not exist or be empty.
        file_format: "onnx" or "torch" (ExportedProgram, .pt2).
        task: what to export; None is `config.default_task`.
        batch: fixed number of images at a time; None leaves it open.

    Raises:
        ExportError: a part cannot be exported, or deviates from the model by more than `TOLERANCE`.
        FileExistsError: `output` is not empty.
        FileNotFoundError: the folder lacks its configuration or image processor.
        OSError: the weights are missing or damaged.
        ImportError: ONNX packages are missing.
        ValueError: unknown format or task, a batch below 1, or a checkpoint that cannot predict.
    """
    folder, output = Path(folder), Path(output)
    if not isinstance(file_format, str) or file_format not in SUFFIXES:
        raise ValueError(f"--format must be one of {sorted(SUFFIXES)}, got {file_format!r}.")
    if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= MAX_BATCH):
        raise ValueError(
            f"--batch must be at least 1 and at most {MAX_BATCH}, or left out for a variable batch; got {batch!r:.80}."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"--output {output} exists and is not an empty folder; choose another one.")
    require_packages(file_format)
    config = load_configuration(folder)
    task = _checked_task(config, task)
    processor_file = processor_path(folder, config, task)
    model = load_model(folder, config, file_format)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as parent:
        written = Path(parent) / output.name
        written.mkdir()
        files, deviations = _write(model, task, file_format, batch, processor_file, written)
        if output.exists():
            output.rmdir()
        written.rename(output)
    return Report(output, files, deviations)


def load_configuration(folder: Path) -> AiTConfig:
    """Configuration of a task-solver's folder.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: the folder is of another family, or an initialisation without trained weights.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; give a checkpoint folder that save_pretrained wrote.")
    model_type = check_json(folder, {}, CONFIG_FILE).get("model_type")
    if model_type != AiTConfig.model_type:
        raise ValueError(f"{path} has model_type {model_type!r}; only {AiTConfig.model_type!r} can be exported.")
    config = AiTConfig.from_pretrained(folder)
    if config.initialization_only:
        raise ValueError(
            f"{folder} is an initialisation: part of its weights is untrained, so there is nothing to export. Train "
            "it, then set initialization_only to false in its config.json."
        )
    return config


def load_model(folder: Path, config: PreTrainedConfig, file_format: str) -> AiTForDenseAndInstancePrediction:
    """The folder's model in float32 and evaluation mode, on the CPU.

    Raises:
        OSError: weights are missing or damaged.
    """
    # ONNX gets attention written out: the memory layout of the fused kernel's output, on which a graph traced with it
    # relies, is not that of what the kernel is decomposed into.
    attention = "eager" if file_format == "onnx" else None
    loaded: Any = AiTForDenseAndInstancePrediction.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise OSError(f"{len(missing)} weights are missing in {folder}, {missing[0]} for one; copy or train it again.")
    return model.eval()


def _checked_task(config: AiTConfig, task: str | None) -> str:
    task = config.default_task if task is None else task
    if task not in config.tasks:
        raise ValueError(f"--task must be one of {list(config.tasks)}, which this checkpoint does; got {task!r}.")
    return task


def _write(
    model: AiTForDenseAndInstancePrediction,
    task: str,
    file_format: str,
    batch: int | None,
    processor_file: Path,
    folder: Path,
) -> tuple[dict[str, str], list[Deviation]]:
    """Write and check every part, then what describes them."""
    config = model.config
    parts = build_parts(model, task, batch)
    paths = {name: write_part(name, part, file_format, batch is None, folder) for name, part in parts.items()}
    files = {name: path.name for name, path in paths.items()}
    settings: dict[str, Any] = {
        "task": task,
        "format": file_format,
        "files": files,
        "batch": batch,
        "input": image_metadata(processor_file, config, task),
        "outputs": output_metadata(config, task),
    }
    if not in_one_pass(config, task):
        settings |= grammar_metadata(config, task)
    opened = {name: open_part(path, parts[name]) for name, path in paths.items()}
    batches = CHECKED_BATCHES if batch is None else (batch,)
    deviations = [deviation for count in batches for deviation in check_parts(model, task, opened, settings, count)]
    settings["tolerance"] = TOLERANCE
    settings["deviations"] = {f"{x.quantity}, batch {x.batch}": x.maximum for x in deviations}
    write_metadata(folder, settings)
    shutil.copy(processor_file, folder / PROCESSOR_FILE)
    return files, deviations
