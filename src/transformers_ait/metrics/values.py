"""Mean absolute and root mean square error of maps of real values, pixels of all images pooled."""

import torch
from torch import Tensor

from ..map_kinds_ait import MAP_KINDS
from .pooling import MapArray, paired_batches

VALUES_METRICS = ("mae", "rmse")


def value_statistics(pred: MapArray, target: MapArray) -> Tensor:
    """What the figures need of maps.

    Args:
        pred: predicted values, (C, H, W) or (B, C, H, W). NaN at a valid pixel makes the figures NaN.
        target: true values, same shape; pixels with NaN in any channel are invalid.

    Returns:
        (3,) float64 on the CPU: number of values, sum of absolute errors, sum of squared errors.

    Raises:
        TypeError: `pred` or `target` is neither tensor nor array, or not floating-point.
        ValueError: shapes differ, or infinite `target`.
    """
    hint = "convert it, and mark invalid pixels by NaN."
    pred, target = paired_batches(pred, target, "C, H, W", "floating-point values", hint)
    kind = MAP_KINDS["values"]
    kind.check(target, target.shape[1], "target")
    valid = kind.valid(target).expand_as(target)
    error = pred[valid].cpu().double() - target[valid].cpu().double()
    return torch.stack([torch.ones_like(error), error.abs(), error.square()]).sum(1)


def value_figures(statistics: Tensor) -> dict[str, float]:
    """mae and rmse of `value_statistics`, or of the sum of several, in the unit of the values; NaN without any."""
    mae, mean_square = statistics[1:] / statistics[0]
    return {"mae": mae.item(), "rmse": mean_square.sqrt().item()}
