"""The nine metrics of monocular depth estimation, per image and averaged over images."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .pooling import MapArray, paired_batches

NYU_EVAL_CROP = (45, 471, 41, 601)  # top, bottom, left, right, half-open: where results on NYU Depth v2 are taken
NYU_IMAGE_SIZE = (480, 640)
DEPTH_METRICS = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")

EvalCrop = bool | tuple[int, int, int, int] | list[int] | None


def depth_metrics(
    pred: MapArray,
    target: MapArray,
    eval_crop: EvalCrop = None,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
) -> dict[str, float]:
    """The nine metrics, computed per image and averaged over images (AiT's evaluation on NYU Depth v2).

    Args:
        pred: predicted metres, (H, W) or (B, H, W). Infinite values count as `max_depth`, NaN as `min_depth`; all
            others are taken as they are, so negative depth makes the logarithmic metrics NaN.
        target: true metres, same shape. A pixel counts where min_depth < target < max_depth.
        eval_crop: True for the region of NYU Depth v2 (480 x 640 images), (top, bottom, left, right) for another,
            half-open; None or False for the whole image.
        min_depth: lower limit of valid depth in metres.
        max_depth: upper limit of valid depth in metres.

    Returns:
        d1, d2, d3: share of pixels whose ratio to the truth is below 1.25, its square, its cube. abs_rel, sq_rel,
        rmse, rmse_log, log10: the usual errors. silog: sqrt(mean(e^2) - 0.5 * mean(e)^2) with e = ln pred - ln target.
        Images without any valid pixel are left out.

    Raises:
        TypeError: `pred` or `target` is neither tensor nor array.
        ValueError: shapes differ, the crop does not fit, or no image has a valid pixel.
    """
    accumulator = DepthMetricAccumulator(eval_crop, min_depth, max_depth)
    accumulator.update(pred, target)
    return accumulator.compute()


def depth_metrics_per_image(
    pred: MapArray,
    target: MapArray,
    eval_crop: EvalCrop = None,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
) -> list[dict[str, float]]:
    """The nine metrics of each image; arguments as in `depth_metrics`.

    Returns:
        One dictionary per image, all NaN where an image has no valid pixel.
    """
    if not 0 < min_depth < max_depth:
        raise ValueError(f"need 0 < min_depth < max_depth, got min_depth={min_depth}, max_depth={max_depth}.")
    hint = "millimetres are `{name} / 1000.0`."
    pred, target = (x.float() for x in paired_batches(pred, target, "H, W", "floating-point metres", hint))
    top, bottom, left, right = _crop_edges(eval_crop, (target.shape[1], target.shape[2]))
    pred = pred[:, top:bottom, left:right]
    pred = torch.where(pred.isinf(), max_depth, pred)
    pred = torch.where(pred.isnan(), min_depth, pred)
    target = target[:, top:bottom, left:right]
    valid = (target > min_depth) & (target < max_depth)
    return [_metrics_of_pixels(p[v], t[v]) for p, t, v in zip(pred, target, valid, strict=True)]


class DepthMetricAccumulator:
    """Mean over the images of many batches; `update` each batch, then `compute`.

    Args:
        eval_crop: as in `depth_metrics`.
        min_depth: lower limit of valid depth in metres.
        max_depth: upper limit of valid depth in metres.
    """

    def __init__(self, eval_crop: EvalCrop = None, min_depth: float = 1e-3, max_depth: float = 10.0):
        self.eval_crop = eval_crop
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.num_images = 0
        self._sums = dict.fromkeys(DEPTH_METRICS, 0.0)

    def update(self, pred: MapArray, target: MapArray) -> None:
        """Add the images of one batch, (H, W) or (B, H, W) metres; batches may differ in image size."""
        for metrics in depth_metrics_per_image(pred, target, self.eval_crop, self.min_depth, self.max_depth):
            # d1 is NaN only without any valid pixel; rmse_log may be NaN for negative predictions, and must stay so.
            if math.isnan(metrics["d1"]):
                continue
            self.num_images += 1
            for name in DEPTH_METRICS:
                self._sums[name] += metrics[name]

    def compute(self) -> dict[str, float]:
        """The means over all images so far.

        Raises:
            ValueError: no image had a valid pixel.
        """
        if self.num_images == 0:
            raise ValueError(
                f"No image has a target pixel between min_depth={self.min_depth} and max_depth={self.max_depth} metres "
                "inside the crop; check that targets are metres and that eval_crop fits."
            )
        return {name: total / self.num_images for name, total in self._sums.items()}


def mean_depth_metrics(per_image: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the images that have a valid pixel, of what `depth_metrics_per_image` gives; NaN where none has."""
    # d1 is NaN only without any valid pixel; other metrics may be NaN for themselves, and must stay so.
    valid = [metrics for metrics in per_image if not math.isnan(metrics["d1"])]
    return {name: float(np.mean([row[name] for row in valid])) if valid else math.nan for name in DEPTH_METRICS}


def _metrics_of_pixels(pred: Tensor, target: Tensor) -> dict[str, float]:
    if target.numel() == 0:
        return dict.fromkeys(DEPTH_METRICS, math.nan)
    ratio = torch.maximum(target / pred, pred / target)
    difference = pred - target
    log_difference = pred.log() - target.log()
    values = {
        "d1": (ratio < 1.25).float().mean(),
        "d2": (ratio < 1.25**2).float().mean(),
        "d3": (ratio < 1.25**3).float().mean(),
        "abs_rel": (difference.abs() / target).mean(),
        "sq_rel": (difference.square() / target).mean(),
        "rmse": difference.square().mean().sqrt(),
        "rmse_log": log_difference.square().mean().sqrt(),
        "log10": (pred.log10() - target.log10()).abs().mean(),
        "silog": (log_difference.square().mean() - 0.5 * log_difference.mean().square()).sqrt(),
    }
    return {name: value.item() for name, value in values.items()}


def _crop_edges(eval_crop: EvalCrop, size: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = size
    if eval_crop is None or eval_crop is False:
        return 0, height, 0, width
    if eval_crop is True:
        if size != NYU_IMAGE_SIZE:
            raise ValueError(
                f"eval_crop=True is the region of 480 x 640 images, got {height} x {width}; "
                "resize the maps or pass (top, bottom, left, right)."
            )
        return NYU_EVAL_CROP
    top, bottom, left, right = eval_crop
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(
            f"eval_crop must be (top, bottom, left, right) inside {height} x {width}, got {tuple(eval_crop)}."
        )
    return top, bottom, left, right
