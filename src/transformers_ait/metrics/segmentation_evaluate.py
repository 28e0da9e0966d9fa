"""The segmentation metrics as an `evaluate` module: `AiTSegmentationMetrics()` or `evaluate.load(<this file>)`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from transformers_ait.metrics.segmentation import SegmentationMetricAccumulator, segmentation_metrics

_INPUTS_DESCRIPTION = f"""
`predictions` and `references`: lists of maps (H, W). `class_names`, in the order of the ids, or None for the ids: keys
of the further result `iou_per_class`. {segmentation_metrics.__doc__}"""


class AiTSegmentationMetrics(evaluate.Metric):
    """`segmentation_metrics` over everything given to `add` and `add_batch`; images may differ in size."""

    def _info(self) -> evaluate.MetricInfo:
        class_map = datasets.List(datasets.List(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description="Mean IoU, pixel accuracy and mean accuracy of class maps, pixels of all images pooled.",
            inputs_description=_INPUTS_DESCRIPTION,
            citation="Everingham et al.: The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 111 (2015)",
            features=datasets.Features({"predictions": class_map, "references": class_map}),
        )

    def _compute(
        self,
        predictions: list,
        references: list,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        accumulator = SegmentationMetricAccumulator(num_classes, ignore_index)
        for pred, target in zip(predictions, references, strict=True):
            accumulator.update(np.asarray(pred), np.asarray(target))
        return {**accumulator.compute(), "iou_per_class": accumulator.iou_per_class(class_names)}
