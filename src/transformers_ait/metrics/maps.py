"""The metrics of every kind of map in one form: statistics of one image, and figures of any number of these."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .depth import DEPTH_METRICS, depth_metrics_per_image, mean_depth_metrics
from .normals import NORMALS_METRICS, normal_figures, normal_statistics
from .segmentation import SEGMENTATION_METRICS, confusion_figures, confusion_matrix
from .values import VALUES_METRICS, value_figures, value_statistics


@dataclass(frozen=True)
class MapMetrics:
    """How a kind of map is measured.

    Args:
        names: the figures in the order of a table.
        leading: the figure that ranks images and models.
        larger_is_better: of the leading figure.
        measure: final predicted map, true native map and channels of ONE image to statistics that can be pickled.
        combine: statistics of any number of images to figures, all NaN without a valid pixel.
    """

    names: tuple[str, ...]
    leading: str
    larger_is_better: bool
    measure: Callable[[Tensor, Tensor, int], Any]
    combine: Callable[[Sequence[Any]], dict[str, float]]


def _pooled(
    names: tuple[str, ...],
    leading: str,
    measure: Callable[[Tensor, Tensor, int], Tensor],
    figures: Callable[[Tensor], dict[str, float]],
    larger_is_better: bool = False,
) -> MapMetrics:
    """Metrics of the pixels of all images together, whose statistics add up."""

    def combine(statistics: Sequence[Tensor]) -> dict[str, float]:
        if not statistics:
            return dict.fromkeys(names, math.nan)
        total = torch.zeros(statistics[0].shape, dtype=torch.float64)
        for of_image in statistics:
            total += of_image
        return figures(total)

    return MapMetrics(names, leading, larger_is_better, measure, combine)


# By `MapKind.metric`. All statistics of a data set are in memory at once, so they are small: sums of an image in single
# precision, and the few pairs of classes that it holds.
MAP_METRICS: dict[str, MapMetrics] = {
    "depth": MapMetrics(
        DEPTH_METRICS, "rmse", False, lambda p, t, _: depth_metrics_per_image(p, t)[0], mean_depth_metrics
    ),
    "normals": _pooled(NORMALS_METRICS, "mean_angle", lambda p, t, _: normal_statistics(p, t).float(), normal_figures),
    "segmentation": _pooled(
        SEGMENTATION_METRICS,
        "miou",
        lambda p, t, channels: confusion_matrix(p, t, channels).double().to_sparse(),
        confusion_figures,
        larger_is_better=True,
    ),
    "values": _pooled(VALUES_METRICS, "rmse", lambda p, t, _: value_statistics(p, t), value_figures),
}
