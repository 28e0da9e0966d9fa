"""The metrics of normals as an `evaluate` module: `AiTNormalsMetrics()` or `evaluate.load(<this file>)`."""

import datasets
import evaluate
import numpy as np

from transformers_ait.metrics.normals import NormalsMetricAccumulator, normals_metrics


class AiTNormalsMetrics(evaluate.Metric):
    """`normals_metrics` over everything given to `add` and `add_batch`; images may differ in size."""

    def _info(self) -> evaluate.MetricInfo:
        normals = datasets.List(datasets.List(datasets.List(datasets.Value("float32"))))
        return evaluate.MetricInfo(
            description="Angles between predicted and true surface normals, pixels of all images pooled.",
            inputs_description=f"`predictions` and `references`: lists of maps (3, H, W). {normals_metrics.__doc__}",
            citation="Fouhey et al.: Data-Driven 3D Primitives for Single Image Understanding, ICCV 2013",
            features=datasets.Features({"predictions": normals, "references": normals}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        accumulator = NormalsMetricAccumulator()
        for pred, target in zip(predictions, references, strict=True):
            accumulator.update(np.asarray(pred, dtype=np.float32), np.asarray(target, dtype=np.float32))
        return accumulator.compute()
