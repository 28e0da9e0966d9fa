"""Conversion of original checkpoints, both ways, and exports."""

import functools
import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

from transformers_ait.conversion import convert, reverse
from transformers_ait.conversion.checkpoint import read_checkpoint
from transformers_ait.conversion.converter import load_configuration
from transformers_ait.export import driver, export_checkpoint

from .case import Case, Place
from .models import field_names
from .tiny_models import write_folders
from .values import as_json, brief, changed_structure, damaged, large_header, odd_value

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
ORIGINALS = ("vqvae_mask", "vqvae_depth", "depth_parallel", "joint")
# An entry of an original configuration that disagrees with another one is named with its section.
SECTIONS = ("backbone.", "transformer.", "task_heads", "loss_type", "vae_cfg")
NAMES = ("vqvae-mask", "ait-vqvae-mask", "paligemma-vqvae-mask", "hourglass-pose-tiny", "missing", "", "ait-lite-nyu")


def prepare(folder: Path) -> None:
    """Checkpoint folders to turn back and to export."""
    write_folders(folder)


@functools.cache
def original(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and configuration of a tiny original checkpoint."""
    prefix = "before." if name.startswith("vqvae") else "state_dict."
    stored = load_file(GOLDENS / f"{name}.safetensors")
    tensors = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    return tensors, json.loads((GOLDENS / f"{name}.json").read_text())["config"]


def odd_tensors(rng: random.Random, tensors: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Tensors with one of them odd, and what it is."""
    tensors = dict(tensors)
    key = rng.choice(sorted(tensors))
    tensor = tensors.pop(key)
    changes: dict[str, dict[str, Any]] = {
        "removed": {},
        "renamed": {f"{key}x": tensor},
        "transposed": {key: tensor.transpose(0, -1).contiguous() if tensor.ndim > 1 else tensor[:-1]},
        "scalar": {key: torch.tensor(1.0)},
        "empty": {key: torch.zeros(0)},
        "not finite": {key: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor},
        "of integers": {key: tensor.to(torch.int32)},
        "complex": {key: tensor.to(torch.complex64)},
        "as it is": {key: tensor},
        "huge": {key: torch.zeros(1).expand(2**20, 2**20)},
        "a number": {key: 5},
        "a list": {key: [1, 2]},
    }
    how = rng.choice(sorted(changes))
    return f"{key} {how}", {**tensors, **changes[how]}


def as_file(rng: random.Random, tensors: dict[str, Any]) -> tuple[str, bytes]:
    """Suffix and bytes of a checkpoint file, of the kinds that are read."""
    suffix = rng.choice((".pth", ".pth", ".pt", ".safetensors", ".npz"))
    plain = {
        key: value for key, value in tensors.items() if isinstance(value, torch.Tensor) and 0 not in value.stride()
    }
    if suffix == ".safetensors":
        return suffix, save_tensors(plain)
    buffer = io.BytesIO()
    if suffix == ".npz":
        np.savez(buffer, **{key: value.numpy() for key, value in plain.items()})
        return suffix, buffer.getvalue()
    wrapped = rng.choice(
        (
            tensors,
            {"state_dict": tensors},
            {"model": tensors, "meta": {}},
            {"weights": tensors},
            {"state_dict": {"model": tensors}},
            [tensors],
            {f"module.{key}": value for key, value in tensors.items()},
            {"state_dict": Path("x")},
        )
    )
    torch.save(wrapped, buffer, _use_new_zipfile_serialization=rng.random() < 0.9)
    return suffix, buffer.getvalue()


def zip_bomb() -> bytes:
    """An .npz whose one array says that it is enormous."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)})
        archive.writestr("a.npy", head.getvalue() + bytes(1000))
    return buffer.getvalue()


def odd_checkpoint(rng: random.Random, folder: Path, name: str) -> tuple[str, Path]:
    """An original checkpoint file with something odd, and what it is."""
    what, tensors = odd_tensors(rng, original(name)[0])
    suffix, data = as_file(rng, tensors)
    which = rng.random()
    if which < 0.4:
        how, data = damaged(rng, data)
        what = f"{how}, {what}"
    elif which < 0.45:
        what, suffix, data = "zip bomb", ".npz", zip_bomb()
    elif which < 0.5:
        what, suffix, data = "enormous header", ".safetensors", large_header(rng)
    elif which < 0.6:
        suffix = rng.choice((".bin", "", ".pth", ".npz", ".safetensors", ".json"))
        what = f"{what}, as {suffix!r}"
    path = folder / f"weights{suffix}"
    if rng.random() < 0.05:
        path.mkdir()
        return "a folder", path
    path.write_bytes(data)
    return what, path


def conversion_case(rng: random.Random, place: Place) -> Case:
    """An odd checkpoint, configuration or output to convert or turn back."""
    which = rng.random()
    if which < 0.15:
        return reverse_case(rng, place)
    name = rng.choice((*ORIGINALS[:2], *ORIGINALS[:2], *ORIGINALS))
    what, path = odd_checkpoint(rng, place.inputs, name)
    names: tuple[str, ...] = (path.name,)
    if which < 0.5:
        given = path if rng.random() < 0.95 else rng.choice((place.inputs / "missing.pth", "original", ""))
        return Case(
            f"read {name}: {what} {Path(given).name}", lambda: read_checkpoint(given), (*names, "checkpoint file")
        )
    config, config_names, said = _odd_config(rng, place, name)
    if which < 0.65:
        return Case(f"configuration {said}", lambda: load_configuration(config), config_names)
    output = place.outputs / rng.choice(("new", "new", "é 雪/x", "full"))
    if output.name == "full":
        output.mkdir()
        (output / "file").write_text("x")
    further = rng.choice(({}, {}, {"vqvae_depth": path}, {"vqvae_mask": place.inputs / "missing.pth"}))
    # An error may name a tensor, a configuration's field, or what would have fit.
    names = (
        *names,
        *config_names,
        "--output",
        "checkpoint",
        "tensor",
        "missing.pth",
        "configuration",
        "vqvae",
        "VQ-VAE",
    )
    call = lambda: convert(path, config, output, **further)  # noqa: E731
    return Case(f"convert {name}: {what}; {said}; {sorted(further)} to {output.name}", call, names)


def _odd_config(rng: random.Random, place: Place, name: str) -> tuple[Any, tuple[str, ...], str]:
    """A configuration of a conversion, names that errors may use, and what it is."""
    if rng.random() < 0.2:
        chosen = rng.choice(NAMES)
        return chosen, ("--config", "config", chosen or "config", "checkpoint"), f"named {chosen!r}"
    path = place.inputs / "original.json"
    what, keys, config = "as it is", (), original(name)[1]
    if rng.random() < 0.7:
        what, keys, config = changed_structure(rng, config)
    data = as_json(config).encode()
    if rng.random() < 0.15:
        what, data = damaged(rng, data)
    path.write_bytes(data)
    names = (
        *(key for key in keys if isinstance(key, str)),
        "original.json",
        "original configuration",
        *SECTIONS,
        *field_names(),
    )
    return path, names, what


def reverse_case(rng: random.Random, place: Place) -> Case:
    """A folder that cannot be turned back, or an output that cannot be written."""
    name = rng.choice(("depth", "parallel", "joint", "vqvae", "plain", "dense_decoder", "pose"))
    folder = place.inputs / "model"
    shutil.copytree(place.session / name, folder)
    what = "as it is"
    file = folder / rng.choice(("config.json", "model.safetensors"))
    if rng.random() < 0.4:
        how, data = damaged(rng, file.read_bytes())
        file.write_bytes(data)
        what = f"{file.name} {how}"
    elif rng.random() < 0.6:
        file.unlink()
        what = f"{file.name} missing"
    elif rng.random() < 0.5:
        what, _, config = changed_structure(rng, json.loads((folder / "config.json").read_text()))
        (folder / "config.json").write_text(as_json(config))
    output = place.outputs / rng.choice(("back.pth", "back.safetensors", "back.bin", "back", "é/back.pt", "there.pth"))
    if output.name == "there.pth":
        output.write_bytes(b"x")
    names = (
        "config",
        "weights",
        "model.safetensors",
        "--output",
        "there.pth",
        "original",
        "weights of",
    )
    return Case(f"reverse {name}: {what} to {output.name}", lambda: reverse(folder, output), (*names, *field_names()))


def export_case(rng: random.Random, place: Place) -> Case:
    """An export that must not start: odd arguments, a broken folder, or an output that is taken; or a broken export."""
    if rng.random() < 0.45:
        return driver_case(rng, place)
    name = rng.choice(("depth", "parallel", "joint", "vqvae", "plain", "dense_decoder", "pose"))
    folder = place.inputs / "model"
    shutil.copytree(place.session / name, folder)
    # Of the two faults, this one alone keeps an export from being made, which takes longer than all other cases.
    config = json.loads((folder / "config.json").read_text()) | {"initialization_only": True}
    (folder / "config.json").write_text(json.dumps(config))
    output: Any = place.outputs / "new"
    arguments: dict[str, Any] = {}
    which = rng.randrange(4)
    if which == 0:
        file = folder / rng.choice(("config.json", "preprocessor_config.json"))
        what = "without processor"
        if file.is_file():
            how, data = damaged(rng, file.read_bytes())
            file.write_bytes(data)
            what = f"{file.name} {how}"
    elif which == 1:
        what, _, changed = changed_structure(rng, config)
        if isinstance(changed, dict):
            changed["initialization_only"] = True
        (folder / "config.json").write_text(as_json(changed))
    elif which == 2:
        output = rng.choice(
            (place.outputs, place.inputs, place.inputs / "model" / "config.json", Path("\0"), "x" * 3000)
        )
        what = f"to {brief(str(output)[-20:])}"
        (place.outputs / "file").write_text("x")
    else:
        key = rng.choice(("file_format", "task", "batch"))
        arguments[key] = rng.choice(("x", 0, -1, 5, None, [], 2**70, "onnx", "torch", True, odd_value(rng)))
        what = f"{key} {brief(arguments[key])}"
    names = (
        "config",
        "model_type",
        "--format",
        "--task",
        "--batch",
        "--output",
        "initialisation",
        "x" * 30,
    )
    names = (*names, *field_names())
    return Case(f"export {name}: {what}", lambda: export_checkpoint(folder, output, **arguments), names)


@functools.cache
def tiny_onnx() -> bytes:
    """A program that gives the first channel back."""
    shape = ["batch", 3, 8, 8]
    value = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("predicted_depth", TensorProto.FLOAT, shape)
    node = helper.make_node("Identity", ["pixel_values"], ["predicted_depth"])
    model = helper.make_model(helper.make_graph([node], "depth", [value], [result]), ir_version=10)
    model.opset_import[0].version = 18
    return model.SerializeToString()


SETTINGS = {
    "task": "depth",
    "format": "onnx",
    "files": {"depth": "depth.onnx"},
    "batch": None,
    "outputs": {"predicted_depth": {}},
}


def driver_case(rng: random.Random, place: Place) -> Case:
    """A broken folder of an export, or odd pixels for it."""
    folder = place.inputs / "exported"
    folder.mkdir()
    what, settings, program = "as it is", json.loads(json.dumps(SETTINGS)), tiny_onnx()
    which = rng.randrange(5)
    text = as_json(settings).encode()
    if which == 0:
        what, _, settings = changed_structure(rng, settings)
        text = as_json(settings).encode()
    elif which == 1:
        what, text = damaged(rng, text)
    elif which == 2:
        how, program = damaged(rng, program)
        what = f"program {how}"
    if which != 3 or rng.random() < 0.5:
        (folder / "export.json").write_bytes(text)
    if which != 3 or rng.random() < 0.5:
        (folder / "depth.onnx").write_bytes(program)
    shape = rng.choice(((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 7), (3, 8, 8), (0, 3, 8, 8), ()))
    pixels: Any = np.zeros(shape, rng.choice(("float32", "float32", "float64", "uint8", "U1")))
    if which == 4 and rng.random() < 0.5:
        pixels = odd_value(rng)

    def call() -> Any:
        loaded = driver.load_parts(folder)
        return driver.predict_map(loaded[1], loaded[0], pixels)

    shown = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else brief(pixels)
    return Case(f"exported: {what}, pixels {shown}", call, ("export.json", "depth.onnx", "pixel_values", "exported"))
