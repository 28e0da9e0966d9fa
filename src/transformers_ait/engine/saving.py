"""How a trained task-solver is written."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel


def save_task_solver(model: PreTrainedModel, state_dict: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Write weights as `dtype`; the configuration still says the dtype to load them in."""
    # Contiguous, because convolutions may have been trained in channels-last order.
    stored = {name: (x.to(dtype) if x.is_floating_point() else x).contiguous() for name, x in state_dict.items()}
    model.save_pretrained(folder, state_dict=stored)
