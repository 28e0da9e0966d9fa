"""Average precision of boxes, masks and mask boundaries, by pycocotools and faster-coco-eval."""

import contextlib
import importlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from .instance_inputs import GroundTruth, Predictions, checked_image_ids, checked_results, load_truth

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
    truth = load_truth(ground_truth, iou_type)
    results = checked_results(predictions, truth, iou_type)
    image_ids = checked_image_ids(image_ids, truth)
    with _named_errors(library):
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
    truth = load_truth(ground_truth, iou_type)
    if not all(category.get("frequency") in ("r", "c", "f") for category in truth["categories"]):
        raise ValueError("ground_truth must give every category a frequency 'r', 'c' or 'f'; COCO's are none of LVIS.")
    _check_listed_categories(truth)
    results = _most_certain(checked_results(predictions, truth, iou_type), LVIS_DETECTIONS)
    image_ids = checked_image_ids(image_ids, truth)
    with _named_errors("faster-coco-eval"):
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


def _check_listed_categories(truth: dict[str, Any]) -> None:
    """Raise a ValueError for LVIS's lists of categories that are none."""
    for index, image in enumerate(truth["images"]):
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(name, [])
            if not isinstance(ids, list) or not all(isinstance(x, int) for x in ids):
                raise ValueError(f"ground_truth['images'][{index}] needs a list of ids as {name}, got {ids!r:.60}.")


@contextlib.contextmanager
def _named_errors(library: str) -> Iterator[None]:
    """Errors of what the checks let through, such as bytes that are no run lengths, with the names of the arguments."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{library} cannot compare predictions with ground_truth ({type(error).__name__}: {error}); are boxes and "
            "masks in COCO's form?"
        ) from error


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
