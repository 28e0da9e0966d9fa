"""The way back: an original-layout checkpoint from a folder of this family."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration_ait import AiTConfig, AiTVQVAEConfig
from ..configuration_checks_ait import CONFIG_FILE, check_json
from ..configuration_hourglass_pose import HourglassPoseConfig
from ..loading_ait import check_index
from .checkpoint import CheckpointError
from .key_map import NameMap, dropped_shapes, invert, task_solver_names, vqvae_names
from .original_config import original_from_ait_config, original_from_vqvae_config
from .plain.backbone import relative_tables
from .plain.decoder import plain_sine_table
from .pose import in_original_shapes, pose_names

CONFIG_CLASSES = {config.model_type: config for config in (AiTConfig, AiTVQVAEConfig, HourglassPoseConfig)}


def load_own_config(folder: str | Path) -> AiTConfig | AiTVQVAEConfig | HourglassPoseConfig:
    """Configuration of a folder of this family.

    Raises:
        FileNotFoundError: there is no config.json.
        OSError: it cannot be read as a JSON object.
        CheckpointError: the folder is of another family.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; give a folder that save_pretrained or the converter wrote.")
    model_type = check_json(folder, {}, CONFIG_FILE).get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_CLASSES:
        raise CheckpointError(f"{path} has model_type {model_type!r}; only {sorted(CONFIG_CLASSES)} can be converted.")
    return CONFIG_CLASSES[model_type].from_pretrained(folder)


def load_own_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Tensors of a folder of this family by our names, from one file or several."""
    folder = Path(folder)
    files = [SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = check_json(folder, {}, SAFE_WEIGHTS_INDEX_NAME)
        check_index(index, SAFE_WEIGHTS_INDEX_NAME)
        files = sorted(set(index["weight_map"].values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"There are no weights in {folder}; expected {folder / missing[0]}.")
    try:
        return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"The weights of {folder} are damaged or incomplete ({error}); copy or download them again."
        ) from error


def original_buffers(config: AiTConfig) -> dict[str, Tensor]:
    """The buffers of an original task-solver that conversion drops, computed from the configuration."""
    shapes = dropped_shapes(config)
    device, buffers = torch.device("cpu"), {}
    backbone = config.backbone_config
    for stage, windows in enumerate(zip(backbone.window_sizes, backbone.pretrained_window_sizes, strict=True)):
        table, index = relative_tables(*windows, device, torch.float32)
        for block in range(backbone.depths[stage]):
            name = f"backbone.layers.{stage}.blocks.{block}.attn"
            buffers[f"{name}.relative_coords_table"] = table.view(shapes[f"{name}.relative_coords_table"])
            buffers[f"{name}.relative_position_index"] = index
    table = plain_sine_table(config.grid_size, config.grid_size, config.decoder_config.hidden_size)
    buffers["transformer.enc_embed"] = table.view(shapes["transformer.enc_embed"])
    if "instance" in config.tasks:
        weight = torch.ones(config.vocabulary.size)
        weight[config.vocabulary.mask_codes.rows] = config.mask_code_weight
        buffers["insseg_head.loss_seq.weight"] = weight
    return buffers


def to_original(
    tensors: Mapping[str, Tensor], config: AiTConfig | AiTVQVAEConfig | HourglassPoseConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Original tensors, with the buffers that the original stores, and original configuration.

    Args:
        tensors: our name -> tensor, of a whole model.
        config: its configuration.

    Raises:
        CheckpointError: tensors are missing or left over.
        ValueError: the configuration has something that the original cannot express.
    """
    names: NameMap
    buffers: dict[str, Tensor] = {}
    if isinstance(config, HourglassPoseConfig):
        names, original, tensors = pose_names(config), {}, in_original_shapes(tensors, config)
    elif isinstance(config, AiTVQVAEConfig):
        names, original = vqvae_names(config), original_from_vqvae_config(config)
    else:
        original = original_from_ait_config(config)
        names, buffers = task_solver_names(config), original_buffers(config)
    theirs = invert(names)
    if set(theirs) != set(tensors):
        raise CheckpointError(
            f"The folder's weights do not fit its configuration: missing {sorted(set(theirs) - set(tensors))}, unknown "
            f"{sorted(set(tensors) - set(theirs))}. An initialisation without decoder has no original layout."
        )
    renamed = {theirs[name]: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    return {**renamed, **buffers}, original


def reverse(folder: str | Path, output: str | Path) -> Path:
    """Write an original-layout checkpoint.

    Args:
        folder: folder of this family, a task-solver or a VQ-VAE.
        output: a .pth, .pt or .safetensors file; the original configuration goes beside it with the suffix .json.

    Returns:
        The checkpoint file.

    Raises:
        FileExistsError: one of the files exists.
        FileNotFoundError: the folder lacks its configuration or weights.
        CheckpointError: the weights do not fit the configuration, or `output` has another suffix.
        ValueError: the configuration has something that the original cannot express.
    """
    output = Path(output)
    if output.suffix not in (".pth", ".pt", ".safetensors"):
        raise CheckpointError(f"--output must be a .pth, .pt or .safetensors file when reversing, got {output}.")
    for path in (output, output.with_suffix(".json")):
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another --output or remove it.")
    config = load_own_config(folder)
    tensors, original = to_original(load_own_tensors(folder), config)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, beside = (path.with_name(f".{path.name}.partial") for path in (output, output.with_suffix(".json")))
    try:
        if output.suffix == ".safetensors":
            save_file({name: tensor.clone() for name, tensor in tensors.items()}, partial)
        elif isinstance(config, AiTVQVAEConfig):
            torch.save({"weights": tensors}, partial)
        elif isinstance(config, HourglassPoseConfig):
            torch.save(tensors, partial)
        else:
            torch.save({"meta": {}, "state_dict": {**tensors, **_duplicates(tensors, config)}}, partial)
        if original:
            beside.write_text(json.dumps(original, indent=2) + "\n")
            os.replace(beside, output.with_suffix(".json"))
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
    return output


def _duplicates(tensors: Mapping[str, Tensor], config: AiTConfig) -> dict[str, Tensor]:
    """`*_head.transformer.*` as the original's heads hold it; torch.save stores shared tensors once."""
    heads = {"detection": "det_head", "instance": "insseg_head", "depth": "depth_head"}
    return {
        f"{heads[task]}.{name}": tensor
        for task in config.tasks
        for name, tensor in tensors.items()
        if name.startswith("transformer.")
    }
