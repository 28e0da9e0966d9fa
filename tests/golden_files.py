"""Where the goldens lie, and what the conversion tests read from them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from transformers_ait.conversion.plain.layers import select

GOLDENS = Path(__file__).parent / "goldens"
TASK_SOLVERS = [
    "depth_ar_soft",
    "depth_ar_hard",
    "depth_parallel",
    "detection",
    "instance_soft",
    "instance_hard",
    "joint",
]
VQVAES = ["vqvae_depth", "vqvae_mask"]


def original_config(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())["config"]


def original_tensors(name):
    prefix = "before." if name in VQVAES else "state_dict."
    return select(load_file(GOLDENS / f"{name}.safetensors"), prefix)


def write_original(folder, name, tensors=None, config=None, wrapper="state_dict"):
    """Write tensors and configuration of a golden, perhaps others, as the original wrote them; returns both paths."""
    tensors = original_tensors(name) if tensors is None else tensors
    checkpoint, settings = folder / "original.pth", folder / "original.json"
    torch.save({wrapper: tensors, "meta": {"epoch": 3}, "optimizer": {"step": torch.zeros(3)}}, checkpoint)
    settings.write_text(json.dumps(config or original_config(name)))
    return checkpoint, settings


def nothing_left(output):
    """Whether neither an output nor what was being written of it is there."""
    return not output.exists() and not list(output.parent.glob(f".{output.name}*"))
