"""One module to one file, through torch.export and PyTorch's ONNX exporter, and files back to functions of arrays."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import Parameter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .driver import Arrays, Part, load_part

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
# What the standard exporter and the check need.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# An example batch other than 1, which torch.export would take for a constant.
EXAMPLE_BATCH = 2


class ExportError(ValueError):
    """A model cannot be exported, or what was exported does not compute what the model does."""


@dataclass
class ModulePart:
    """A module to export.

    Args:
        module: takes and gives tensors, in evaluation mode.
        inputs: name -> example, in the order of the module's arguments.
        outputs: names of what it gives.
        batched: names of the inputs whose first axis is the batch.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    batched: tuple[str, ...]


def require_packages(file_format: str) -> None:
    """Raise an ImportError that names the extra when the ONNX packages are missing."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if file_format == "onnx" else []
    if missing:
        raise ImportError(
            f"--format onnx needs {', '.join(missing)}; run `pip install transformers_ait[export]`, or take --format "
            "torch."
        )


def write_part(name: str, part: ModulePart, file_format: str, dynamic_batch: bool, folder: Path) -> Path:
    """Export a part to a file of the folder.

    Raises:
        ExportError: torch.export or the ONNX exporter cannot express the part.
    """
    file = folder / f"{name}{SUFFIXES[file_format]}"
    try:
        with torch.no_grad(), _quiet_exporter():
            program = torch.export.export(
                part.module.eval(), tuple(part.inputs.values()), dynamic_shapes=_dynamic_shapes(part, dynamic_batch)
            )
            if file_format == "torch":
                torch.export.save(program, file)
            else:
                _write_onnx(program, part, file)
    # The exporters raise whatever the graph ran into, in a dozen types without a common base.
    except Exception as error:
        hint = "; a fixed batch (--batch N) may work where a variable one does not" if dynamic_batch else ""
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"The {name} cannot be exported ({type(error).__name__}: {reason}){hint}.") from error
    return file


def open_part(file: Path, part: ModulePart) -> Part:
    """An exported file as a function of arrays by name."""
    if file.suffix == SUFFIXES["onnx"]:
        return load_part(file, threads=torch.get_num_threads())
    module = torch.export.load(file).module()

    def run(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(np.asarray(arrays[name])) for name in part.inputs))
        tensors: Sequence[Tensor] = (outputs,) if isinstance(outputs, Tensor) else outputs
        return {name: tensor.numpy() for name, tensor in zip(part.outputs, tensors, strict=True)}

    return run


def _dynamic_shapes(part: ModulePart, dynamic_batch: bool) -> tuple | None:
    if not dynamic_batch:
        return None
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if name in part.batched else {} for name in part.inputs)
    kinds = [parameter.kind for parameter in inspect.signature(part.module.forward).parameters.values()]
    # Arguments behind `*` form one argument.
    named = len(kinds) - 1 if Parameter.VAR_POSITIONAL in kinds else len(kinds)
    return shapes if named == len(kinds) else (*shapes[:named], shapes[named:])


def _write_onnx(program: torch.export.ExportedProgram, part: ModulePart, file: Path) -> None:
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=list(part.inputs), output_names=list(part.outputs)
    )
    assert exported is not None
    exported.save(file)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporters' warnings about themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
