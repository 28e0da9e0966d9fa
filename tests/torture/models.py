"""Configurations, by arguments and as JSON, and checkpoint folders."""

import copy
import dataclasses
import functools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, pipeline

from transformers_ait import (
    AiTConfig,
    AiTDenseImageProcessor,
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTModel,
    AiTPlainDenseModel,
    AiTSwinV2Backbone,
    AiTVQVAEModel,
    DenseDecoderModel,
    HourglassForPoseLifting,
    HourglassPoseProcessor,
)
from transformers_ait.modeling_bin_tokenizer import AiTBinTokenizer

from .case import Case, Place
from .tiny_models import CONFIGS, FOLDERS, write_folders
from .values import as_json, brief, changed_structure, damaged, json_value, large_header, number, odd_value

HUB_CONFIGS = Path(__file__).resolve().parents[2] / "hub_configs"
MODELS: dict[str, type[Any]] = {
    "ait": AiTForDenseAndInstancePrediction,
    "ait_vqvae": AiTVQVAEModel,
    "ait_bin_tokenizer": AiTBinTokenizer,
    "ait_swinv2": AiTSwinV2Backbone,
    "ait_plain_dense": AiTPlainDenseModel,
    "dense_decoder": DenseDecoderModel,
    "hourglass_pose": HourglassForPoseLifting,
}


@functools.cache
def field_names() -> tuple[str, ...]:
    """Fields of all configurations: an error about two of them may name the other one."""
    names = {field.name for config, _ in CONFIGS for field in dataclasses.fields(config) if len(field.name) > 3}
    # What all configurations of transformers have is no place that a user would look for.
    return (*sorted(names - {"dtype", "architectures"}), "configuration", "dense task")


def config_case(rng: random.Random, place: Place) -> Case:
    """A configuration with one or two fields odd, built, and perhaps its model too."""
    if rng.random() < 0.3:
        return stored_config_case(rng, place)
    kind, good = rng.choice(CONFIGS)
    settings = copy.deepcopy(good)
    said, names = [], []
    for _ in range(rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.3:
            what, keys, settings = changed_structure(rng, settings, odd_value)
            names += [key for key in keys if isinstance(key, str)]
            said.append(what)
            settings = settings if isinstance(settings, dict) else {"id2label": settings}
            settings = {str(key): value for key, value in settings.items()}
            continue
        fields = [field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")]
        name = rng.choice((*fields, *good, "out_indices", "out_features", "num_labels", "unknown"))
        settings[name] = number(rng) if rng.random() < 0.4 else odd_value(rng)
        names.append(name)
        said.append(f"{name} {brief(settings[name], 60)}")
    builds, is_json = rng.random() < 0.5, _is_json(settings)

    def call() -> Any:
        config = kind(**settings)
        if is_json:  # what JSON cannot hold, no configuration can write
            config.to_json_string()
        if builds and kind.model_type in MODELS:
            # Nothing is allocated there, whatever the sizes.
            with torch.device("meta"):
                MODELS[kind.model_type](config)

    return Case(f"{kind.__name__}{' and model' if builds else ''}: {', '.join(said)}", call, (*names, *field_names()))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def stored_config_case(rng: random.Random, place: Place) -> Case:
    """The dictionary of a published configuration, with something changed."""
    source = rng.choice(sorted(HUB_CONFIGS.glob("ait-*/config.json")))
    stored = json.loads(source.read_text())
    what, keys, changed = changed_structure(rng, stored)
    given = (
        {} if rng.random() < 0.7 else {rng.choice(("id2label", "num_labels", "tasks", "image_size")): json_value(rng)}
    )
    names = (*(key for key in keys if isinstance(key, str)), *given, *field_names(), "config")
    return Case(f"{source.parent.name}: {what} {brief(given)}", lambda: AiTConfig.from_dict(changed, **given), names)


def prepare(folder: Path) -> None:
    """Checkpoint folders to copy."""
    write_folders(folder)


LOAD_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "dtype": ("x", 5, "float32", "float64", "int8", torch.int64, [], {"a": "b"}, "auto", True, "float8_e4m3fn"),
    "torch_dtype": ("x", "float16"),
    "id2label": ([], ["a"], "x", 5, {"a": "b"}, {0: 1}, {1: "a"}, {0: "a", 1: "a"}, {-1: "x"}, {0: None}, {}),
    "label2id": ([], "x", {"a": "b"}, {0: 1}, 7),
    "num_labels": (-1, "x", 0, 3, 1.5, 2**40, True, []),
    "out_indices": ([], [-9], "x", [99], 5, [None]),
    "out_features": ([], ["x"], "x", 5),
    "attn_implementation": ("x", "flash_attention_2", 5, {"a": "b"}, "eager", []),
    "device_map": ("x", "auto", 5, {"": "x"}, "cpu", []),
    "subfolder": ("missing", 5, "..", None),
    "revision": ("x", 5),
    "variant": ("x", 5),
    "use_safetensors": (False, "x"),
    "ignore_mismatched_sizes": (True, "x"),
    "image_size": (2**40, 64, -1, 0, "x", 33, 1.5),
    "backbone_config": (5, {}, {"model_type": "x"}, {"model_type": "bert"}, "x"),
    "dense_tasks": (5, [5], [{}], [{"name": "a b"}], "x", [{"name": "normals", "kind": "x"}]),
    "tasks": ([], "depth", ["x"], 5, ["depth", "depth"], ["instance"]),
    "unknown_argument": (1, None),
    "quantization_config": (5, {}),
    "trust_remote_code": ("x",),
    "config": (5, "x", {}),
    "state_dict": (5, {}, {"a": torch.zeros(1)}),
}


# An Auto class reads both JSON files itself, and says of bytes that are no JSON object only this.
WHOLE = "replaced whole"
OF_TRANSFORMERS = (
    "codec can't decode",
    "Expecting",
    "Extra data",
    "Invalid",
    "Unterminated",
    "is not iterable",
    "indices",
)


def checkpoint_case(rng: random.Random, place: Place) -> Case:
    """A checkpoint folder with something wrong, or loaded with odd arguments."""
    name = rng.choice(FOLDERS)
    folder = place.inputs / rng.choice(("model", "é 雪"))
    shutil.copytree(place.session / name, folder)
    loaders = _loaders(name)
    which = rng.random()
    if which < 0.3:
        return _argument_case(rng, name, folder, loaders)
    if which < 0.36:
        odd = rng.choice(
            (None, 5, "", "missing", "a/b/c/d", place.inputs / "nothing", folder / "config.json", b"x", "\0")
        )
        title = odd if not isinstance(odd, Path) else odd.name
        label, load = rng.choice(loaders)
        # Of any name that is no folder, transformers says that it cannot reach the Hub.
        given = (
            "huggingface.co",
            "path",
            "name",
            "missing",
            "nothing",
            "config.json",
            "a/b/c",
            "repo",
            "model",
            "identifier",
            "null",
        )
        return Case(f"{name}: {label} of {brief(title)}", lambda: load(odd), given)
    if which < 0.6:
        file, loaders = "config.json", loaders
    elif which < 0.72:
        file, loaders = "preprocessor_config.json", [x for x in loaders if "rocess" in x[0] or "xtract" in x[0]]
    else:
        file, loaders = "model.safetensors", [x for x in loaders if "odel" in x[0]]
    path = folder / file
    if not path.is_file() or not loaders:
        return _argument_case(rng, name, folder, _loaders(name))
    label, load = rng.choice(loaders)
    what, names = _spoil(rng, path)
    if path.suffix == ".json" and label.startswith(("Auto", "pipe")):
        names = (*names, *OF_TRANSFORMERS)
        if what == WHOLE:  # an Auto class stumbles over anything but an object, before this package sees it
            label, load = next(loader for loader in loaders if not loader[0].startswith(("Auto", "pipe")))
    # Of a folder, one name is as good as another.
    names = (*names, file, folder.name, *(field_names() if file == "config.json" else ()))
    return Case(f"{name}: {label}, {file} {what}", lambda: load(folder), names)


# Of the Auto classes and pipelines transformers uses these before this package sees anything.
OF_THE_HUB = ("subfolder", "revision", "variant", "use_safetensors", "trust_remote_code", "config", "device_map")


def _argument_case(rng: random.Random, name: str, folder: Path, loaders: list[Any]) -> Case:
    label, load = rng.choice(loaders)
    known = [x for x in sorted(LOAD_ARGUMENTS) if not (x in OF_THE_HUB and label.startswith(("Auto", "pipe")))]
    chosen = rng.sample(known, rng.choice((1, 1, 2)))
    given = {key: rng.choice(LOAD_ARGUMENTS[key]) if rng.random() < 0.8 else json_value(rng) for key in chosen}
    names = (*chosen, *field_names(), "config.json", "weights", "dtype", "huggingface.co", folder.name)
    return Case(f"{name}: {label} with {brief(given)}", lambda: load(folder, **given), names)


def _loaders(name: str) -> list[tuple[str, Any]]:
    """Ways to load a folder, by name."""
    models: dict[str, Any] = {
        "vqvae": AiTVQVAEModel,
        "plain": AiTPlainDenseModel,
        "dense_decoder": DenseDecoderModel,
        "pose": HourglassForPoseLifting,
    }
    model = models.get(name, AiTForDenseAndInstancePrediction)
    found: list[tuple[str, Any]] = [
        (f"{model.config_class.__name__} (config)", model.config_class.from_pretrained),
        ("AutoConfig", AutoConfig.from_pretrained),
        ("AutoModel", AutoModel.from_pretrained),
        (model.__name__ + " (model)", model.from_pretrained),
    ]
    if name == "pose":
        found.append(("HourglassPoseProcessor", HourglassPoseProcessor.from_pretrained))
        return [*found, ("AutoFeatureExtractor", AutoFeatureExtractor.from_pretrained)]
    if name not in ("vqvae", "dense_decoder"):
        own = AiTDepthImageProcessor if name in ("depth", "parallel") else AiTDenseImageProcessor
        found.append((own.__name__, own.from_pretrained))
        found.append(("AutoImageProcessor", AutoImageProcessor.from_pretrained))
        found.append(("pipeline of processor and model", lambda x, **y: pipeline("depth-estimation", str(x), **y)))
    if name in ("depth", "joint"):
        found.append(("AiTModel", AiTModel.from_pretrained))
    return found


def _spoil(rng: random.Random, path: Path) -> tuple[str, tuple[str, ...]]:
    """Spoil a file of a checkpoint; what was done, and names that an error may use."""
    which = rng.random()
    if which < 0.1:
        path.unlink()
        return "missing", ()
    if which < 0.16:
        path.unlink()
        path.mkdir()
        return "is a folder", ()
    if path.suffix == ".safetensors":
        return _spoil_weights(rng, path)
    if which < 0.45:
        what, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
        return what, ()
    what, keys, changed = changed_structure(rng, json.loads(path.read_text()))
    path.write_text(as_json(changed))
    return what, tuple(key for key in keys if isinstance(key, str))


def _spoil_weights(rng: random.Random, path: Path) -> tuple[str, tuple[str, ...]]:
    which = rng.randrange(9)
    if which < 3:
        what, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
        return what, ()
    if which == 3:
        path.write_bytes(large_header(rng))
        return "with an enormous header", ()
    if which == 4:
        index = rng.choice(
            ({}, {"weight_map": 5}, {"weight_map": {"a": "missing.safetensors"}}, [], {"weight_map": {}})
        )
        path.unlink()
        (path.parent / "model.safetensors.index.json").write_text(as_json(index))
        return f"in parts by {index}", ("index", "missing.safetensors", "weight_map")
    if which == 5:
        path.rename(path.parent / "pytorch_model.bin")
        return "renamed to pytorch_model.bin", ("pytorch_model.bin",)
    tensors = load_file(path)
    key = rng.choice(sorted(tensors))
    what = rng.choice(("removed", "renamed", "longer", "of another type", "empty", "not finite"))
    tensor = tensors.pop(key)
    changed = {
        "renamed": {f"{key}_": tensor},
        "longer": {key: torch.cat([tensor[None], tensor[None]])},
        "of another type": {key: tensor.to(torch.complex64 if rng.random() < 0.3 else torch.int8)},
        "empty": {key: torch.zeros(0)},
        "not finite": {key: torch.full_like(tensor, float("nan"))},
    }
    save_file({**tensors, **changed.get(what, {})}, path, {"format": "pt"} if rng.random() < 0.9 else None)
    return f"{key} {what}", (key, key.rpartition(".")[0])
