"""Angles between predicted and true surface normals, pixels of all images pooled."""

import math

import torch
from torch import Tensor

from ..map_kinds_ait import MAP_KINDS
from .pooling import MapArray, PooledAccumulator, paired_batches

THRESHOLDS = (5.0, 11.25, 22.5, 30.0)  # degrees
NORMALS_METRICS = ("mean_angle", "median_angle", "rmse_angle", *(f"within_{limit:g}" for limit in THRESHOLDS))
BINS_PER_DEGREE = 100
UNKNOWN_ANGLE = 90.0  # degrees; what a prediction without direction counts as


def normals_metrics(pred: MapArray, target: MapArray) -> dict[str, float]:
    """The seven figures of normal maps, pixels of all images pooled.

    Args:
        pred: predicted normals, (3, H, W) or (B, 3, H, W), of any length; a zero vector, NaN and infinity have no
            direction and count as 90 degrees.
        target: true normals, unit vectors, same shape; the zero vector is invalid.

    Returns:
        mean_angle, median_angle, rmse_angle: degrees, the median to 0.005. within_5, within_11.25, within_22.5,
        within_30: share of pixels whose angle is smaller than that.

    Raises:
        TypeError: `pred` or `target` is neither tensor nor array, or not floating-point.
        ValueError: shapes differ, maps without three channels, `target` of another length, or no pixel is valid.
    """
    accumulator = NormalsMetricAccumulator()
    accumulator.update(pred, target)
    return accumulator.compute()


def normal_angles(pred: MapArray, target: MapArray) -> Tensor:
    """Angle (N,) float64 in degrees, on the CPU, of every valid pixel; see `normals_metrics`."""
    hint = "8-bit normals are `{name} / 127.5 - 1`."
    pred, target = paired_batches(pred, target, "3, H, W", "floating-point vectors", hint)
    if target.shape[1] != 3:
        raise ValueError(f"pred and target must be (3, H, W) or (B, 3, H, W), got {tuple(target.shape)}.")
    kind = MAP_KINDS["normals"]
    kind.check(target, 3, "target")
    valid = kind.valid(target).squeeze(1)
    pred, target = (x.movedim(1, -1)[valid].cpu().double() for x in (pred, target))
    # Components of about 1 before they are squared, so that short vectors do not vanish and long ones not overflow.
    pred = pred / pred.abs().amax(-1, keepdim=True)
    # Unlike the arc cosine, exact for small angles.
    angles = torch.atan2(torch.linalg.cross(pred, target).norm(dim=-1), (pred * target).sum(-1)).rad2deg()
    return angles.nan_to_num(nan=UNKNOWN_ANGLE)


def normal_statistics(pred: MapArray, target: MapArray) -> Tensor:
    """What the figures need, (18008,) float64 for any number of pixels; see `normals_metrics`.

    Seven sums: pixels, angles, squared angles, pixels within each threshold. Then a histogram: pixels whose angle
    rounds to 0.00, 0.01, ... 180.00 degrees.
    """
    angles = normal_angles(pred, target)
    sums = torch.stack([torch.ones_like(angles), angles, angles.square(), *(angles < limit for limit in THRESHOLDS)])
    bins = (angles * BINS_PER_DEGREE).round().long()
    return torch.cat([sums.sum(1), torch.bincount(bins, minlength=180 * BINS_PER_DEGREE + 1).double()])


def normal_figures(statistics: Tensor) -> dict[str, float]:
    """The seven figures of `normal_statistics`, or of the sum of several; all NaN without a valid pixel."""
    sums, histogram = statistics.double().tensor_split([3 + len(THRESHOLDS)])
    count = sums[0].item()
    mean, mean_square, *within = (sums[1:] / count).tolist() if count else [math.nan] * (len(sums) - 1)
    # The bins of the two middle pixels, which are one for an odd number; ranks count from 0.
    middle = torch.tensor([(count - 1) // 2, count // 2], dtype=torch.float64)
    bins = torch.searchsorted(histogram.cumsum(0), middle, right=True).double()
    median = bins.mean().item() / BINS_PER_DEGREE if count else math.nan
    return dict(zip(NORMALS_METRICS, (mean, median, math.sqrt(mean_square), *within), strict=True))


class NormalsMetricAccumulator(PooledAccumulator):
    """`normals_metrics` over many batches, in constant memory."""

    def __init__(self) -> None:
        super().__init__(normal_statistics, normal_figures)
