"""What the parts share: tensors by their original names, and layers written out."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

Tensors = Mapping[str, torch.Tensor]
OriginalConfig = Mapping[str, Any]


def select(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose name starts with `prefix`, without the prefix."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def plain_linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """Linear layer on the last axis; without a bias where there is none of that name."""
    return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def plain_layer_norm(tensors: Tensors, name: str, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """LayerNorm `name` over the last axis, computed in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = tensors[f"{name}.weight"].to(wide), tensors[f"{name}.bias"].to(wide)
    return F.layer_norm(x.to(wide), weight.shape, weight, bias, epsilon).to(x.dtype)


def plain_mlp(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """Two linear layers on the last axis with an exact GELU between."""
    return plain_linear(tensors, f"{name}.fc2", F.gelu(plain_linear(tensors, f"{name}.fc1", x)))
