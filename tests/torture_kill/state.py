"""What a run leaves, compared bit for bit; and what must hold of a folder at any moment."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

MANIFEST = "manifest.json"
LOGS = "log.jsonl"
_PICKLED = {".bin", ".pkl", ".pt", ".pth"}
# Times of their writing are in them.
_WITH_TIMES = {"tensorboard"}
_OF_A_START = {"output", "resume"}


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Dotted names of all that is not equal bit for bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted({*first, *second}, key=str)
        return [x for key in keys for x in differences(first.get(key), second.get(key), f"{path}.{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [name for index, pair in pairs for name in differences(*pair, f"{path}.{index}")]
    if isinstance(first, torch.Tensor | np.ndarray) and type(first) is type(second):
        return [] if _bits(first) == _bits(second) else [path]
    if type(first) is not type(second):
        return [path]
    if hasattr(first, "__dict__") and not isinstance(first, type):
        return differences(vars(first), vars(second), path)
    return [] if repr(first) == repr(second) else [path]


def _bits(values: torch.Tensor | np.ndarray) -> tuple[Any, ...]:
    if isinstance(values, torch.Tensor):
        values = values.detach().contiguous()
        return values.dtype, tuple(values.shape), values.reshape(-1).view(torch.uint8).numpy().tobytes()
    return values.dtype, values.shape, values.tobytes()


def final_state(folder: Path) -> dict[str, Any]:
    """Every file of a run by its path below the folder: numbers where it holds them, else a digest of its bytes."""
    state = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in _WITH_TIMES:
            state[name.as_posix()] = _content(path)
    return state


def _content(path: Path) -> Any:
    if path.name == MANIFEST:  # of digests: archives of the same numbers may differ in their bytes
        return sorted(json.loads(path.read_text())["files"])
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in _PICKLED:
        # Of a run that this harness made itself.
        content = torch.load(path, weights_only=False)
        if path.name == "training_args.bin":
            content.output_dir = "RUN"
        return content
    if path.name == "recipe.yaml":
        values = yaml.safe_load(path.read_text())
        return {**values, "run": {key: x for key, x in values["run"].items() if key not in _OF_A_START}}
    return hashlib.sha256(path.read_bytes().replace(str(path.parents[1]).encode(), b"RUN")).hexdigest()


def checkpoints(folder: Path, pattern: str) -> list[Path]:
    """Visible checkpoints, the latest last."""
    return sorted((folder / "checkpoints").glob(pattern), key=lambda path: int(path.name.rpartition("-")[2]))


def damage(checkpoint: Path) -> list[str]:
    """What a manifest says of its checkpoint; nothing if it is whole."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        return [f"{checkpoint.name} has no {MANIFEST}"]
    files = json.loads(path.read_text())["files"]
    found = {file.relative_to(checkpoint).as_posix() for file in checkpoint.rglob("*") if file.is_file()}
    wrong = [f"{checkpoint.name}/{name} is not in the manifest" for name in sorted(found - {*files, MANIFEST})]
    for name, digest in files.items():
        if name not in found:
            wrong.append(f"{checkpoint.name}/{name} is missing")
        elif hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() != digest:
            wrong.append(f"{checkpoint.name}/{name} has changed or is cut off")
    return wrong


def broken_promises(folder: Path, pattern: str, whole: dict[str, Any]) -> list[str]:
    """What is wrong with a run's folder after a kill at any moment.

    Args:
        folder: the run's.
        pattern: of the names of checkpoints.
        whole: `final_state` of the unbroken run.
    """
    wrong = [problem for checkpoint in checkpoints(folder, pattern) for problem in damage(checkpoint)]
    model = folder / "model"
    if model.exists():
        expected = {name.removeprefix("model/"): x for name, x in whole.items() if name.startswith("model/")}
        try:
            wrong += [f"model: {name}" for name in differences(expected, final_state(model))]
        except Exception as error:
            wrong.append(f"model: {type(error).__name__}: {error}")
    for name in ("metrics.json", "recipe.yaml"):
        if (folder / name).exists():
            try:
                found = yaml.safe_load((folder / name).read_text())
            except yaml.YAMLError as error:
                found = error
            if not isinstance(found, dict) or not found:
                wrong.append(f"{name} is cut off")
    lines = (folder / LOGS).read_text().splitlines() if (folder / LOGS).exists() else []
    wrong += [f"{LOGS}, line {number + 1} is cut off" for number, x in enumerate(lines[:-1]) if not x.endswith("}")]
    return wrong
