"""Metrics that need no model; `depth_evaluate` and `instances_evaluate` hold them as `evaluate` modules."""

from .depth import DEPTH_METRICS, NYU_EVAL_CROP, DepthMetricAccumulator, depth_metrics, depth_metrics_per_image
from .instances import COCO_METRICS, LVIS_METRICS, coco_metrics, lvis_metrics

__all__ = [
    "COCO_METRICS",
    "DEPTH_METRICS",
    "LVIS_METRICS",
    "NYU_EVAL_CROP",
    "DepthMetricAccumulator",
    "coco_metrics",
    "depth_metrics",
    "depth_metrics_per_image",
    "lvis_metrics",
]
