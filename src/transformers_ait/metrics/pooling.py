"""What the metrics of maps share: their inputs, and figures of the pixels of all images together."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MapArray = Tensor | np.ndarray


class PooledAccumulator:
    """Figures of the pixels of many batches; `update` each batch, then `compute`.

    Args:
        statistics: predicted and true maps to one tensor of sums, 0 without a valid pixel.
        figures: such a tensor, or the sum of several, to figures.
    """

    def __init__(
        self, statistics: Callable[[MapArray, MapArray], Tensor], figures: Callable[[Tensor], dict[str, float]]
    ) -> None:
        self.total = torch.zeros(())
        self._statistics = statistics
        self._figures = figures

    def update(self, pred: MapArray, target: MapArray) -> None:
        """Add one map or a batch of maps; batches may differ in image size."""
        self.total = self.total + self._statistics(pred, target)

    def compute(self) -> dict[str, float]:
        """The figures of all pixels so far; a ValueError if none was valid."""
        if not self.total.any():
            raise ValueError("No pixel of target is valid; check how targets mark invalid pixels.")
        return self._figures(self.total)


def paired_batches(
    pred: MapArray, target: MapArray, axes: str, content: str, hint: str, floating: bool = True
) -> tuple[Tensor, Tensor]:
    """Predicted and true maps as batches of one shape, on the target's device; a TypeError or ValueError for others.

    Args:
        pred, target: a map or a batch of maps.
        axes: of one map, such as "H, W".
        content: what they must hold, for the message about other types.
        hint: what to do about these; `{name}` stands for the argument.
        floating: whether they must hold floating-point numbers or integers.
    """
    tensors = []
    for value, name in ((pred, "pred"), (target, "target")):
        if not isinstance(value, (Tensor, np.ndarray)):
            raise TypeError(f"{name} must be a torch tensor or NumPy array, got {type(value).__name__}.")
        # A copy: torch takes no arrays with negative strides, and warns of those that it cannot write.
        tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
        if tensor.is_floating_point() != floating:
            raise TypeError(f"{name} must be {content}, got {value.dtype}; {hint.format(name=name)}")
        missing = axes.count(",") + 2 - tensor.ndim
        if missing not in (0, 1):
            raise ValueError(f"{name} must be ({axes}) or (B, {axes}), got {tuple(tensor.shape)}.")
        tensors.append(tensor[None] if missing else tensor)
    pred, target = tensors
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have one shape, got {tuple(pred.shape)} and {tuple(target.shape)}.")
    return pred.to(target.device), target
