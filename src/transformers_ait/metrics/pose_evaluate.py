"""The pose metrics as an `evaluate` module: `HourglassPoseMetrics()` or `evaluate.load(<this file>)`; extra [train]."""

from typing import Any

import datasets
import evaluate
import torch

from transformers_ait.metrics import POSE_METRICS, pose_metrics

_DESCRIPTION = "MPJPE, MPJPE after a similarity alignment, and velocity error of 3-D poses, means over videos."


class HourglassPoseMetrics(evaluate.Metric):
    """Mean over videos of `pose_metrics`; poses are lists (T, J, 3) in metres."""

    def _info(self) -> evaluate.MetricInfo:
        poses = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("float32"))))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: poses (T, J, 3) in metres, one per video.",
            features=datasets.Features({"predictions": poses, "references": poses}),
        )

    def _compute(self, predictions: Any, references: Any, root_joint: int = 0) -> dict[str, float]:
        found = [
            pose_metrics(torch.as_tensor(prediction), torch.as_tensor(reference), root_joint)
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {name: sum(figures[name] for figures in found) / len(found) for name in POSE_METRICS}
