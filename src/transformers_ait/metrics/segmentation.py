"""Mean IoU, pixel accuracy and mean accuracy of class maps, from one confusion matrix of all images."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..map_kinds_ait import IGNORED_CLASS
from .pooling import MapArray, PooledAccumulator, paired_batches

SEGMENTATION_METRICS = ("miou", "pixel_accuracy", "mean_accuracy")


def segmentation_metrics(
    pred: MapArray, target: MapArray, num_classes: int, ignore_index: int = IGNORED_CLASS
) -> dict[str, float]:
    """The three figures of class maps, pixels of all images pooled.

    Args:
        pred: predicted class ids, (H, W) or (B, H, W); what they are at ignored pixels does not matter.
        target: true class ids, same shape.
        num_classes: of the class table; ids run from 0.
        ignore_index: true id of pixels that do not count. A class of the table that is ignored has no figures;
            predicting it is an error.

    Returns:
        miou: mean IoU of the classes that occur in truth or prediction. pixel_accuracy: share of pixels that are
        right. mean_accuracy: the same of each class that occurs in the truth, averaged.

    Raises:
        TypeError: `pred` or `target` is neither tensor nor array, or not of integers.
        ValueError: shapes differ, ids beyond the table, or no pixel is valid.
    """
    accumulator = SegmentationMetricAccumulator(num_classes, ignore_index)
    accumulator.update(pred, target)
    return accumulator.compute()


def confusion_matrix(pred: MapArray, target: MapArray, num_classes: int, ignore_index: int = IGNORED_CLASS) -> Tensor:
    """Numbers of pixels (num_classes, num_classes) int64 by true and predicted class, see `segmentation_metrics`."""
    hint = "of class scores take the largest, `{name}.argmax(...)`."
    pred, target = paired_batches(pred, target, "H, W", "integer class ids", hint, floating=False)
    valid = target.long() != ignore_index
    pred, target = (x.long()[valid] for x in (pred, target))
    for name, ids in (("pred", pred), ("target", target)):
        wrong = ids[(ids < 0) | (ids >= num_classes)]
        if len(wrong):
            raise ValueError(
                f"{name} must be class ids in [0, {num_classes}) where target is not ignore_index={ignore_index}, got "
                f"{wrong[0].item()}; num_classes is the size of the class table, ignore_index marks invalid targets."
            )
    return torch.bincount(target * num_classes + pred, minlength=num_classes**2).view(num_classes, -1).cpu()


def class_iou(confusion: Tensor, ignore_index: int = IGNORED_CLASS) -> Tensor:
    """IoU (num_classes,) float64 of each class; NaN where it occurs neither in truth nor in prediction."""
    hits = confusion.diagonal().double()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    if 0 <= ignore_index < len(iou):
        iou[ignore_index] = math.nan
    return iou


def confusion_figures(confusion: Tensor, ignore_index: int = IGNORED_CLASS) -> dict[str, float]:
    """The three figures of a confusion matrix, or of the sum of several; all NaN where it is empty."""
    hits = confusion.diagonal().double()
    figures = (
        class_iou(confusion, ignore_index).nanmean(),
        hits.sum() / confusion.sum(),
        (hits / confusion.sum(1)).nanmean(),
    )
    return {name: value.item() for name, value in zip(SEGMENTATION_METRICS, figures, strict=True)}


class SegmentationMetricAccumulator(PooledAccumulator):
    """`segmentation_metrics` over many batches; arguments as there."""

    def __init__(self, num_classes: int, ignore_index: int = IGNORED_CLASS) -> None:
        statistics = partial(confusion_matrix, num_classes=num_classes, ignore_index=ignore_index)
        super().__init__(statistics, partial(confusion_figures, ignore_index=ignore_index))
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def iou_per_class(self, names: Sequence[str] | None = None) -> dict[str, float]:
        """IoU so far by class, as `class_iou`; `names` in the order of the ids, None is the ids themselves."""
        names = [str(index) for index in range(self.num_classes)] if names is None else names
        if len(names) != self.num_classes or len(set(names)) != self.num_classes:
            raise ValueError(f"names must be {self.num_classes} different class names, got {list(names)}.")
        confusion = self.total.expand(self.num_classes, self.num_classes)  # without any batch, a single 0
        return dict(zip(names, class_iou(confusion, self.ignore_index).tolist(), strict=True))
