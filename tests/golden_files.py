"""Where the goldens lie, and what the conversion tests read from them."""

import json
from pathlib import Path

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
