"""COCO's figures as an `evaluate` module: `AiTInstanceMetrics()` or `evaluate.load(<this file>)`; extra [train]."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from transformers_ait.metrics.instances import GroundTruth, coco_metrics

_DESCRIPTION = "COCO's twelve figures of object detection or instance segmentation."
_INPUTS_DESCRIPTION = """
Args:
    predictions: COCO results, one per object: image_id, category_id, bbox (x, y, width, height), score, and for masks
        segmentation, a compressed run-length encoding.
    ground_truth: COCO annotations, as a dictionary or the path of a JSON file.
    iou_type: "bbox", "segm" or "boundary".
    image_ids: images to evaluate; None is all of ground_truth.
Returns:
    AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.
"""
_CITATION = "Lin et al.: Microsoft COCO: Common Objects in Context, arXiv 1405.0312"


class AiTInstanceMetrics(evaluate.Metric):
    """`coco_metrics` over every result given to `add` and `add_batch`; the annotations come with `compute`."""

    def _info(self) -> evaluate.MetricInfo:
        result = {
            "image_id": datasets.Value("int64"),
            "category_id": datasets.Value("int64"),
            "score": datasets.Value("float64"),
            "bbox": datasets.List(datasets.Value("float64")),
            "segmentation": {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")},
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            inputs_description=_INPUTS_DESCRIPTION,
            citation=_CITATION,
            features=datasets.Features({"predictions": result}),
        )

    def add(self, *, prediction: Mapping[str, Any], **kwargs: Any) -> None:
        """Add one result."""
        super().add(prediction=_complete(prediction), **kwargs)

    def add_batch(self, *, predictions: Sequence[Mapping[str, Any]], **kwargs: Any) -> None:
        """Add results."""
        super().add_batch(predictions=[_complete(prediction) for prediction in predictions], **kwargs)

    def _compute(
        self,
        predictions: list[dict[str, Any]],
        ground_truth: GroundTruth,
        iou_type: str = "segm",
        image_ids: Sequence[int] | None = None,
    ) -> dict[str, float]:
        return coco_metrics([_without_gaps(entry) for entry in predictions], ground_truth, iou_type, image_ids)


# The table that evaluate stores needs every field, but a result has boxes, or masks, or both.
def _complete(prediction: Mapping[str, Any]) -> dict[str, Any]:
    result = {name: prediction[name] for name in ("image_id", "category_id", "score")}
    encoding = prediction.get("segmentation") or {"size": [], "counts": ""}
    return result | {"bbox": prediction.get("bbox") or [], "segmentation": encoding}


def _without_gaps(result: Mapping[str, Any]) -> dict[str, Any]:
    empty = {"bbox": not result["bbox"], "segmentation": not result["segmentation"]["size"]}
    return {name: value for name, value in result.items() if not empty.get(name)}
