"""How a trained task-solver is written."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel


def save_task_solver(model: PreTrainedModel, state_dict: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Write weights as `dtype`; the configuration still says the dtype to load them in."""
    model.save_pretrained(folder, state_dict={name: _stored(x, dtype) for name, x in state_dict.items()})


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point():
        # Codes that no map was ever assigned to lie beyond half precision, and infinity would spoil every soft decode.
        limit = torch.finfo(dtype).max
        tensor = tensor.clamp(-limit, limit).to(dtype)
    # Contiguous, because convolutions may have been trained in channels-last order.
    return tensor.contiguous()
