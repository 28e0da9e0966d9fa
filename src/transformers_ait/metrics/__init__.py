"""Metrics that need no model; `depth_evaluate` holds the depth metrics as an `evaluate` module."""

from .depth import DEPTH_METRICS, NYU_EVAL_CROP, DepthMetricAccumulator, depth_metrics, depth_metrics_per_image

__all__ = ["DEPTH_METRICS", "NYU_EVAL_CROP", "DepthMetricAccumulator", "depth_metrics", "depth_metrics_per_image"]
