"""Metrics that need no model; the modules `*_evaluate` hold them as `evaluate` modules."""

from .depth import (
    DEPTH_METRICS,
    NYU_EVAL_CROP,
    DepthMetricAccumulator,
    depth_metrics,
    depth_metrics_per_image,
    mean_depth_metrics,
)
from .instances import COCO_METRICS, LVIS_METRICS, coco_metrics, lvis_metrics
from .maps import MAP_METRICS, MapMetrics
from .normals import NORMALS_METRICS, NormalsMetricAccumulator, normals_metrics
from .object_errors import OBJECT_ERRORS, object_errors
from .pose import POSE_METRICS, pose_metrics, similarity_aligned
from .segmentation import SEGMENTATION_METRICS, SegmentationMetricAccumulator, confusion_matrix, segmentation_metrics
from .values import VALUES_METRICS

__all__ = [
    "COCO_METRICS",
    "DEPTH_METRICS",
    "LVIS_METRICS",
    "MAP_METRICS",
    "NORMALS_METRICS",
    "NYU_EVAL_CROP",
    "OBJECT_ERRORS",
    "POSE_METRICS",
    "SEGMENTATION_METRICS",
    "VALUES_METRICS",
    "DepthMetricAccumulator",
    "MapMetrics",
    "NormalsMetricAccumulator",
    "SegmentationMetricAccumulator",
    "coco_metrics",
    "confusion_matrix",
    "depth_metrics",
    "depth_metrics_per_image",
    "lvis_metrics",
    "mean_depth_metrics",
    "object_errors",
    "normals_metrics",
    "pose_metrics",
    "segmentation_metrics",
    "similarity_aligned",
]
