"""Average precision of boxes, masks and mask boundaries, by pycocotools and faster-coco-eval."""

import contextlib
import copy
import importlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IOU_TYPES = ("bbox", "segm", "boundary")
LIBRARIES = ("pycocotools", "faster-coco-eval")
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# Names of faster-coco-eval's figures, in the order of its own names. LVIS has no limits of 1 and 10 detections.
_LVIS_METRICS = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
    "APr": "APr",
    "APc": "APc",
    "APf": "APf",
    "AR300": "AR_all",
    "ARs": "AR_small",
    "ARm": "AR_medium",
    "ARl": "AR_large",
}
LVIS_METRICS = tuple(_LVIS_METRICS)
LVIS_DETECTIONS = 300  # per image, over all categories

Predictions = Sequence[Mapping[str, Any]]
GroundTruth = Mapping[str, Any] | str | Path


def coco_metrics(
    predictions: Predictions,
    ground_truth: GroundTruth,
    iou_type: str = "segm",
    image_ids: Sequence[int] | None = None,
    library: str | None = None,
) -> dict[str, float]:
    """COCO's twelve figures of detection or segmentation.

    Args:
        predictions: COCO results, as `AiTInstanceImageProcessor.post_process_coco` gives them: `image_id`,
            `category_id`, `score`, and `bbox` (x, y, width, height) for "bbox", `segmentation` (run-length encoding)
            for the others. An image may have none.
        ground_truth: COCO annotations, as a dictionary or the path of a JSON file. Not changed.
        iou_type: "bbox", "segm", or "boundary" (Boundary IoU, arXiv 2103.16562, dilation 0.02 of the diagonal).
        image_ids: images to evaluate; None is all of `ground_truth`.
        library: "pycocotools" or "faster-coco-eval"; None is the first, but for "boundary" the second, which alone has
            it. They agree where both apply.

    Returns:
        `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`, `ARm`, `ARl` in [0, 1]; NaN where the
        ground truth has no object to measure by.

    Raises:
        ImportError: the library is missing.
        FileNotFoundError: `ground_truth` is no file.
        ValueError: unknown `iou_type` or `library`; a prediction without what `iou_type` needs, or of an image or
            category that the ground truth does not have.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    if library is None:
        library = "faster-coco-eval" if iou_type == "boundary" else "pycocotools"
    _check_choice("library", library, LIBRARIES)
    if library == "pycocotools" and iou_type == "boundary":
        raise ValueError("library 'pycocotools' has no iou_type 'boundary'; use 'faster-coco-eval'.")
    truth = _load(ground_truth)
    results = _checked_results(predictions, truth, iou_type)
    if library == "pycocotools":
        stats = _pycocotools_stats(results, truth, iou_type, image_ids)
    else:
        stats = _faster_evaluation(results, truth, iou_type, image_ids).stats
    return {name: _figure(value) for name, value in zip(COCO_METRICS, stats, strict=False)}


def lvis_metrics(
    predictions: Predictions,
    ground_truth: GroundTruth,
    iou_type: str = "segm",
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """LVIS's figures (arXiv 1908.03195) by faster-coco-eval: federated annotations, up to 300 detections per image.

    Args:
        predictions: as in `coco_metrics`.
        ground_truth: LVIS annotations: COCO's, with `neg_category_ids` and `not_exhaustive_category_ids` of the images
            and `frequency` ("r", "c" or "f") of the categories. A dictionary or the path of a JSON file.
        iou_type: "bbox", "segm" or "boundary".
        image_ids: images to evaluate; None is all of `ground_truth`.

    Returns:
        `AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, of rare, common and frequent categories `APr`, `APc`, `APf`, `AR300`,
        `ARs`, `ARm`, `ARl` in [0, 1]; NaN where the ground truth has no object to measure by.

    Raises:
        ImportError: faster-coco-eval is missing.
        FileNotFoundError: `ground_truth` is no file.
        ValueError: as `coco_metrics`; ground truth that is not LVIS's.
    """
    _check_choice("iou_type", iou_type, IOU_TYPES)
    truth = _load(ground_truth)
    if not all(category.get("frequency") in ("r", "c", "f") for category in truth["categories"]):
        raise ValueError("ground_truth must give every category a frequency 'r', 'c' or 'f'; COCO's are none of LVIS.")
    results = _most_certain(_checked_results(predictions, truth, iou_type), LVIS_DETECTIONS)
    figures = _faster_evaluation(results, truth, iou_type, image_ids, LVIS_DETECTIONS).stats_as_dict
    return {name: _figure(figures[theirs]) for name, theirs in _LVIS_METRICS.items()}


def _pycocotools_stats(
    results: list[dict[str, Any]], truth: dict[str, Any], iou_type: str, image_ids: Sequence[int] | None
) -> Sequence[float]:
    coco, evaluation = (_import(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    # It prints; what it says is what is returned.
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = coco.COCO()
        annotated.dataset = truth
        annotated.createIndex()
        run = evaluation.COCOeval(annotated, _detections(coco.COCO, annotated, results), iou_type)
        if image_ids is not None:
            run.params.imgIds = list(image_ids)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def _faster_evaluation(
    results: list[dict[str, Any]],
    truth: dict[str, Any],
    iou_type: str,
    image_ids: Sequence[int] | None,
    lvis_detections: int | None = None,
) -> Any:
    """A finished run, in LVIS's way when `lvis_detections` limits the detections of an image."""
    library = _import("faster_coco_eval")
    annotated = library.COCO(truth)
    detections = _detections(library.COCO, annotated, results)
    lvis = lvis_detections is not None
    run = library.COCOeval_faster(annotated, detections, iou_type, lvis_style=lvis, print_function=_silent)
    if lvis:
        run.params.maxDets = [lvis_detections]
    if image_ids is not None:
        run.params.imgIds = list(image_ids)
    run.run()
    return run


def _detections(coco_class: Any, annotated: Any, results: list[dict[str, Any]]) -> Any:
    """A library's index of results; both libraries' own loaders fail without any."""
    if results:
        return annotated.loadRes(results)
    detections = coco_class()
    detections.dataset = {key: annotated.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    detections.createIndex()
    return detections


def _most_certain(results: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` results of each image; the library's own limit is for each category."""
    kept: dict[int, list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: -result["score"]):
        of_image = kept.setdefault(result["image_id"], [])
        if len(of_image) < count:
            of_image.append(result)
    return [result for of_image in kept.values() for result in of_image]


def _load(ground_truth: GroundTruth) -> dict[str, Any]:
    """A copy, because both libraries write into what they are given."""
    if isinstance(ground_truth, Mapping):
        return copy.deepcopy(dict(ground_truth))
    with open(ground_truth, encoding="utf-8") as file:
        return json.load(file)


def _checked_results(predictions: Predictions, truth: Mapping[str, Any], iou_type: str) -> list[dict[str, Any]]:
    """Copies that hold one form alone: with a box beside it, pycocotools would take a mask's area from the box."""
    form = "bbox" if iou_type == "bbox" else "segmentation"
    needed = ("image_id", "category_id", "score", form)
    known = {
        "image_id": {image["id"] for image in truth["images"]},
        "category_id": {category["id"] for category in truth["categories"]},
    }
    results = []
    for index, prediction in enumerate(predictions):
        missing = [name for name in needed if prediction.get(name) is None]
        if missing:
            raise ValueError(f"predictions[{index}] lacks {missing}, which iou_type {iou_type!r} needs.")
        for name, ids in known.items():
            if prediction[name] not in ids:
                raise ValueError(f"predictions[{index}] has {name} {prediction[name]}, unknown to ground_truth.")
        results.append({name: copy.deepcopy(prediction[name]) for name in needed})
    return results


def _figure(value: float) -> float:
    # -1 is how both libraries say that there is nothing to measure.
    return math.nan if value == -1 else float(value)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"These metrics need {module.partition('.')[0]}: pip install pycocotools faster-coco-eval."
        ) from error


def _silent(*_: Any, **__: Any) -> None:
    pass
