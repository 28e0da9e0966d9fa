"""The depth metrics as an `evaluate` module: `AiTDepthMetrics()` or `evaluate.load(<this file>)`; extra [train]."""

import datasets
import evaluate
import numpy as np

from transformers_ait.metrics.depth import DepthMetricAccumulator, EvalCrop

_DESCRIPTION = "Nine metrics of monocular depth estimation, computed per image and averaged over images."
_INPUTS_DESCRIPTION = """
Args:
    predictions: predicted depth maps (H, W) in metres.
    references: true depth maps (H, W) in metres; 0 = invalid.
    eval_crop: True for the region of NYU Depth v2, (top, bottom, left, right), or None for the whole image.
    min_depth, max_depth: limits of valid depth in metres.
Returns:
    d1, d2, d3, abs_rel, sq_rel, rmse, rmse_log, log10, silog.
"""
_CITATION = "Ning et al.: All in Tokens: Unifying Output Space of Visual Tasks via Soft Token, arXiv 2301.02229"


class AiTDepthMetrics(evaluate.Metric):
    """`depth_metrics` over everything given to `add` and `add_batch`; images may differ in size."""

    def _info(self) -> evaluate.MetricInfo:
        depth_map = datasets.List(datasets.List(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            inputs_description=_INPUTS_DESCRIPTION,
            citation=_CITATION,
            features=datasets.Features({"predictions": depth_map, "references": depth_map}),
        )

    def _compute(
        self,
        predictions: list,
        references: list,
        eval_crop: EvalCrop = None,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
    ) -> dict[str, float]:
        accumulator = DepthMetricAccumulator(eval_crop, min_depth, max_depth)
        for pred, target in zip(predictions, references, strict=True):
            accumulator.update(np.asarray(pred, dtype=np.float32), np.asarray(target, dtype=np.float32))
        return accumulator.compute()
