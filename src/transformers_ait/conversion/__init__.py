"""Conversion of original AiT checkpoints, both ways, with proof; `python -m transformers_ait.conversion` runs it."""

from .converter import convert
from .key_map import backbone_names, invert, task_solver_names, vqvae_names
from .original_config import (
    ait_config_from_original,
    original_from_ait_config,
    original_from_vqvae_config,
    vqvae_config_from_original,
)
from .reverser import reverse

__all__ = [
    "ait_config_from_original",
    "backbone_names",
    "convert",
    "invert",
    "original_from_ait_config",
    "original_from_vqvae_config",
    "reverse",
    "task_solver_names",
    "vqvae_config_from_original",
    "vqvae_names",
]
