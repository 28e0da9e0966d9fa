"""What keeps the average precision of objects down: TIDE's error types (Bolya et al. 2020, arXiv 2008.08115)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .instance_inputs import GroundTruth, Predictions, checked_results, load_truth, mask_tools, shape_for_overlap

ERROR_TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")
OBJECT_ERRORS = ("AP50", *ERROR_TYPES)
ERROR_IOU_TYPES = ("bbox", "segm")
FOUND_IOU, BACKGROUND_IOU = 0.5, 0.1
"""A prediction finds an object from the first IoU on; up to the second it has nothing to do with it."""
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class _Judged:
    """A prediction: whether it finds an object, else what is wrong with it.

    Args:
        category: its class.
        score: its score.
        found: number of the object that it finds, if any.
        error: its error type; None of one that finds an object, or is ignored because it lies in a crowd.
        meant: number of the object that it would find, were the class or the place right and the object still free.
    """

    category: int
    score: float
    found: int | None = None
    error: str | None = None
    meant: int | None = None


def object_errors(predictions: Predictions, ground_truth: GroundTruth, iou_type: str = "segm") -> dict[str, float]:
    """AP at an IoU of 0.5, and how much each type of error costs of it.

    A prediction that finds no object (IoU of 0.5, its own class, highest scores first) is one of these: at the right
    place with a wrong class (classification); of the right class with an IoU of 0.1 to 0.5 (localisation); of a wrong
    class with such an IoU (both); on an object that a higher score found already (duplicate); on nothing (background).
    An object that no prediction finds, nor would find with its class or place put right, is missed. What a type costs
    is the AP without it, less the AP as it is: classes and places are put right, other wrong predictions taken out,
    missed objects not counted. Costs do not add up to 1 - AP, as errors hide each other.

    Args:
        predictions: COCO results, see `coco_metrics`.
        ground_truth: COCO annotations, as a dictionary or the path of a JSON file. Not changed.
        iou_type: "bbox" or "segm".

    Returns:
        `AP50` and, by error type, its cost, in [0, 1]; all NaN where the ground truth has no object.

    Raises:
        ImportError: pycocotools is missing.
        FileNotFoundError: `ground_truth` is no file.
        ValueError: unknown `iou_type`, or predictions that do not fit, see `coco_metrics`.
    """
    if iou_type not in ERROR_IOU_TYPES:
        raise ValueError(f"iou_type must be one of {ERROR_IOU_TYPES}, got {iou_type!r}.")
    truth = load_truth(ground_truth, iou_type)
    results = checked_results(predictions, truth, iou_type)
    objects = [entry for entry in truth["annotations"] if not entry.get("iscrowd", 0)]
    judged = _judge_all(results, truth, objects, iou_type)
    categories = np.array([entry["category_id"] for entry in objects])
    counts = {int(category): int((categories == category).sum()) for category in np.unique(categories)}
    plain = _mean_precision([(x.category, x.score, x.found) for x in judged], counts)
    # Classification and localisation would find these; they are not counted twice.
    reached = {x.found for x in judged} | {x.meant for x in judged if x.error in ("classification", "localisation")}
    missed = [number for number in range(len(objects)) if number not in reached]
    costs = {}
    for error in ERROR_TYPES[:-1]:
        costs[error] = _mean_precision(_without(judged, error, categories), counts) - plain
    fewer = {name: count - int((categories[missed] == name).sum()) for name, count in counts.items()}
    costs["missed"] = _mean_precision([(x.category, x.score, x.found) for x in judged], fewer) - plain
    return {"AP50": plain, **costs}


def _judge_all(
    results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], iou_type: str
) -> list[_Judged]:
    """All predictions that are not ignored, image by image."""
    tools = mask_tools()
    of_image: dict[Any, tuple[list[Any], list[int], list[Any]]] = defaultdict(lambda: ([], [], []))
    for entry in results:
        of_image[entry["image_id"]][0].append(entry)
    for number, entry in enumerate(objects):
        of_image[entry["image_id"]][1].append(number)
    for entry in truth["annotations"]:
        if entry.get("iscrowd", 0):
            of_image[entry["image_id"]][2].append(entry)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    judged: list[_Judged] = []
    for image, (found, numbers, crowds) in of_image.items():
        if not found:
            continue
        found.sort(key=lambda entry: -entry["score"])
        shapes = [shape_for_overlap(entry, iou_type, sizes[image]) for entry in found]
        true = [objects[number] for number in numbers]
        overlap = _overlap(tools, shapes, [shape_for_overlap(x, iou_type, sizes[image]) for x in true], crowd=False)
        in_crowd = _overlap(tools, shapes, [shape_for_overlap(x, iou_type, sizes[image]) for x in crowds], crowd=True)
        of_crowds = np.array([entry["category_id"] for entry in crowds], int)
        judged += _judge_image(found, overlap, numbers, true, in_crowd, of_crowds)
    return judged


def _judge_image(
    found: Sequence[Mapping[str, Any]],
    overlap: np.ndarray,
    numbers: Sequence[int],
    true: Sequence[Mapping[str, Any]],
    in_crowd: np.ndarray,
    of_crowds: np.ndarray,
) -> list[_Judged]:
    """The predictions of an image, highest scores first; `overlap` (predictions, objects)."""
    classes = np.array([entry["category_id"] for entry in found])
    same = classes[:, None] == np.array([entry["category_id"] for entry in true], int)[None]
    taken, matches = np.zeros(len(true), bool), np.full(len(found), -1)
    for row in range(len(found)):
        choices = np.where(same[row] & ~taken, overlap[row], 0.0)
        if len(true) and choices.max() >= FOUND_IOU:
            matches[row] = int(choices.argmax())
            taken[matches[row]] = True
    judged = []
    for row, entry in enumerate(found):
        own = int(entry["category_id"]), float(entry["score"])
        if matches[row] >= 0:
            judged.append(_Judged(*own, found=numbers[matches[row]]))
        elif not ((in_crowd[row] >= FOUND_IOU) & (of_crowds == entry["category_id"])).any():
            error, place = _error(overlap[row], same[row], taken)
            judged.append(_Judged(*own, error=error, meant=None if place is None else numbers[place]))
    return judged


def _error(overlap: np.ndarray, same: np.ndarray, taken: np.ndarray) -> tuple[str, int | None]:
    """Error type of a prediction that finds nothing, and the place of the free object that it means, if any."""
    if len(overlap) == 0:
        return "background", None
    own, other = np.where(same, overlap, 0.0), np.where(~same, overlap, 0.0)
    if BACKGROUND_IOU <= own.max() < FOUND_IOU:
        error, place = "localisation", int(own.argmax())
    elif other.max() >= FOUND_IOU:
        error, place = "classification", int(other.argmax())
    elif own.max() >= FOUND_IOU:
        return "duplicate", None
    else:
        return ("both" if overlap.max() > BACKGROUND_IOU else "background"), None
    return error, None if taken[place] else place


def _without(judged: Sequence[_Judged], error: str, categories: np.ndarray) -> list[tuple[int, float, int | None]]:
    """Category, score and object found of predictions after an error type is put right or taken out.

    Of several that mean one object, whatever their errors, the highest score alone is put right: the others would be
    duplicates then.
    """
    best: dict[int, _Judged] = {}
    for x in judged:
        if x.meant is not None and (x.meant not in best or x.score > best[x.meant].score):
            best[x.meant] = x
    kept = [(x.category, x.score, x.found) for x in judged if x.error != error]
    right = [(int(categories[number]), x.score, number) for number, x in best.items() if x.error == error]
    return kept + right


def _mean_precision(found: Sequence[tuple[int, float, int | None]], counts: Mapping[int, int]) -> float:
    """Mean over classes of COCO's AP, with 101 recalls, of (category, score, object found)."""
    by_class: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for category, score, number in found:
        by_class[category].append((score, number is not None))
    precisions = [_average_precision(by_class[category], count) for category, count in counts.items()]
    return float(np.mean(precisions)) if precisions else float("nan")


def _average_precision(found: Sequence[tuple[float, bool]], count: int) -> float:
    """Of a class with `count` objects; 0 where none is left to find."""
    if count <= 0 or not found:
        return 0.0
    right = np.array([hit for _, hit in sorted(found, key=lambda pair: -pair[0])])
    hits = right.cumsum()
    recall, precision = hits / count, hits / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(falling, 0.0)[places].mean())


def _overlap(tools: Any, found: Sequence[Any], true: Sequence[Any], crowd: bool) -> np.ndarray:
    """IoU (predictions, objects); of a crowd, the share of the prediction that lies in it."""
    if not true:
        return np.zeros((len(found), 0))
    return np.array(tools.iou(list(found), list(true), [int(crowd)] * len(true)))


__all__ = ["ERROR_TYPES", "OBJECT_ERRORS", "object_errors"]
