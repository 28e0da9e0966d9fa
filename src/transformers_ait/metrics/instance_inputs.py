"""Checks of what the metrics of objects are given: the libraries behind them raise anything, or read past the end."""

import copy
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

Predictions = Sequence[Mapping[str, Any]]
GroundTruth = Mapping[str, Any] | str | Path

MIN_POLYGON = 6  # numbers: three corners
MAX_PIXELS = 2**28
"""Of an image; masks of more do not fit into memory by the hundred."""


def load_truth(ground_truth: GroundTruth, iou_type: str) -> dict[str, Any]:
    """Annotations whose entries the libraries can read; a copy, because they write into what they are given.

    Args:
        ground_truth: a COCO dictionary, or the path of its JSON file.
        iou_type: "bbox" needs no masks.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: it is neither a dictionary nor a path.
        ValueError: it is no JSON, or an entry lacks a value or has one of another type.
    """
    if isinstance(ground_truth, Mapping):
        truth: Any = copy.deepcopy(dict(ground_truth))
    elif isinstance(ground_truth, str | Path):
        truth = _read(Path(ground_truth))
    else:
        raise TypeError(
            f"ground_truth must be a dictionary of COCO annotations or the path of a JSON file, got "
            f"{type(ground_truth).__name__}."
        )
    for name, keys in (
        ("images", ("id",)),
        ("categories", ("id",)),
        ("annotations", ("id", "image_id", "category_id")),
    ):
        for index, entry in enumerate(_listed(truth, name)):
            _check_entry(entry, keys, f"ground_truth[{name!r}][{index}]")
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    for index, entry in enumerate(truth["annotations"]):
        where = f"ground_truth['annotations'][{index}]"
        if not _is_number(entry.get("area")):
            raise ValueError(f"{where} needs an area, a finite number of pixels, got {entry.get('area')!r:.60}.")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"{where} has iscrowd {entry['iscrowd']!r:.60}; it must be 0 or 1.")
        _check_form(entry, iou_type, sizes.get(entry["image_id"], (None, None)), where)
    return truth


def checked_results(predictions: Predictions, truth: Mapping[str, Any], iou_type: str) -> list[dict[str, Any]]:
    """Copies that hold one form alone: with a box beside it, pycocotools would take a mask's area from the box.

    Args:
        predictions: COCO results.
        truth: see `load_truth`.
        iou_type: "bbox" needs boxes, others masks.

    Raises:
        TypeError: predictions are no list of dictionaries.
        ValueError: a prediction lacks something, or is of an image or category that the truth does not have.
    """
    if not isinstance(predictions, Sequence) or isinstance(predictions, str):
        raise TypeError(f"predictions must be a list of COCO results, got {type(predictions).__name__}.")
    needed = ("image_id", "category_id", "score", _form(iou_type))
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    known = {"image_id": set(sizes), "category_id": {category["id"] for category in truth["categories"]}}
    results = []
    for index, prediction in enumerate(predictions):
        where = f"predictions[{index}]"
        if not isinstance(prediction, Mapping):
            raise TypeError(f"{where} must be a COCO result, a dictionary, got {type(prediction).__name__}.")
        missing = [name for name in needed if prediction.get(name) is None]
        if missing:
            raise ValueError(f"{where} lacks {missing}, which iou_type {iou_type!r} needs.")
        _check_entry(prediction, ("image_id", "category_id"), where)
        for name, ids in known.items():
            if prediction[name] not in ids:
                raise ValueError(f"{where} has {name} {prediction[name]}, unknown to ground_truth.")
        if not _is_number(prediction["score"]):
            raise ValueError(f"{where} needs a score, a finite number, got {prediction['score']!r:.60}.")
        _check_form(prediction, iou_type, sizes[prediction["image_id"]], where, encoded=True)
        results.append({name: copy.deepcopy(prediction[name]) for name in needed})
    return results


def checked_image_ids(image_ids: Sequence[int] | None, truth: Mapping[str, Any]) -> list[int] | None:
    """The images to evaluate, or None for all.

    Raises:
        TypeError: they are no list of ids.
        ValueError: the truth does not have one of them.
    """
    if image_ids is None:
        return None
    if isinstance(image_ids, str) or not isinstance(image_ids, Sequence):
        raise TypeError(f"image_ids must be a list of the ids of images, got {image_ids!r:.60}.")
    known = {image["id"] for image in truth["images"]}
    unknown = [image_id for image_id in image_ids if not isinstance(image_id, Integral) or image_id not in known]
    if unknown:
        raise ValueError(f"image_ids must be ids of images of ground_truth, got {unknown[:3]!r:.80} among them.")
    return [int(image_id) for image_id in image_ids]


def shape_for_overlap(entry: Mapping[str, Any], iou_type: str, size: tuple[Any, Any]) -> Any:
    """An entry's box or mask as `pycocotools.mask.iou` compares them.

    Args:
        entry: an annotation or a result that was checked (`load_truth`, `checked_results`).
        iou_type: "bbox" takes the box (x, y, width, height) in pixels, others the mask as a compressed run-length
            encoding; polygons of fewer than three corners are left out.
        size: (height, width) of its image.

    Raises:
        ImportError: pycocotools is missing.
        ValueError: polygons, or runs without compression, of an image whose size is not known.
    """
    value = entry[_form(iou_type)]
    if iou_type == "bbox":
        return [float(side) for side in value]
    if isinstance(value, Mapping) and isinstance(value["counts"], str | bytes):
        return dict(value)
    if None in size:
        raise ValueError(
            f"ground_truth['images'] needs height and width of image {entry.get('image_id')!r}, whose objects are no "
            "compressed run-length encodings."
        )
    tools = mask_tools()
    if isinstance(value, Mapping):
        return tools.frPyObjects(dict(value), *size)
    polygons = [polygon for polygon in value if len(polygon) >= MIN_POLYGON]
    if not polygons:
        return tools.encode(np.zeros(size, dtype=np.uint8, order="F"))
    return tools.merge(tools.frPyObjects(polygons, *size))


def mask_tools() -> Any:
    """`pycocotools.mask`, which carries no types.

    Raises:
        ImportError: it is missing.
    """
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise ImportError("Overlaps of objects need pycocotools: pip install pycocotools.") from error


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"ground_truth: {path} is not valid JSON ({error}): is it truncated?") from error


def _listed(truth: Any, name: str) -> list[Any]:
    if not isinstance(truth, dict) or not isinstance(truth.get(name), list):
        found = sorted(map(str, truth)) if isinstance(truth, dict) else type(truth).__name__
        raise ValueError(f"ground_truth must hold the lists images, annotations and categories of COCO, got {found}.")
    return truth[name]


def _check_entry(entry: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a dictionary, got {entry!r:.60}.")
    for key in keys:
        value = entry.get(key)
        if not isinstance(value, Integral) or not -(2**63) <= int(value) < 2**63:
            raise ValueError(f"{where} needs a whole number as {key}, got {value!r:.60}.")


def _form(iou_type: str) -> str:
    return "bbox" if iou_type == "bbox" else "segmentation"


def _check_form(
    entry: Mapping[str, Any], iou_type: str, size: tuple[Any, Any], where: str, encoded: bool = False
) -> None:
    """Raise a ValueError for a box or mask that the libraries cannot read.

    Args:
        entry: an annotation or a result.
        iou_type: decides which of the two.
        size: (height, width) of its image, where that is known.
        where: names the entry.
        encoded: whether the mask must be run-length encoded.
    """
    value = entry.get(_form(iou_type))
    if _form(iou_type) == "bbox":
        if not isinstance(value, Sequence) or len(value) != 4 or not all(map(_is_number, value)):
            raise ValueError(f"{where} needs a bbox of four finite numbers (x, y, width, height), got {value!r:.80}.")
    elif isinstance(value, Mapping):
        _check_runs(value, size, where, encoded)
    elif encoded or not isinstance(value, list) or not value or not all(_is_polygon(x, size) for x in value):
        forms = "a run-length encoding" if encoded else "polygons inside of its image, or a run-length encoding"
        raise ValueError(f"{where} needs {forms} as segmentation, got {value!r:.80}.")


def _check_runs(value: Mapping[str, Any], size: tuple[Any, Any], where: str, encoded: bool) -> None:
    given, counts = value.get("size"), value.get("counts")
    sides: list[int] = []
    if isinstance(given, Sequence) and all(isinstance(x, Integral) and int(x) > 0 for x in given):
        sides = [int(x) for x in given]
    if len(sides) != 2 or sides[0] * sides[1] > MAX_PIXELS or (None not in size and tuple(sides) != size):
        raise ValueError(f"{where} has a mask of size {given!r:.60}, but its image is {size} (height, width).")
    if isinstance(counts, list) and not encoded:
        if all(isinstance(x, Integral) and int(x) >= 0 for x in counts) and sum(counts) == sides[0] * sides[1]:
            return
    elif isinstance(counts, str | bytes) and str(counts).isprintable():
        return
    raise ValueError(f"{where} has a run-length encoding whose counts do not fit its size, got {counts!r:.80}.")


def _is_polygon(value: Any, size: tuple[Any, Any]) -> bool:
    """Whether a value is x1, y1, x2, y2, ... near the image; filling one far away would take memory without bound."""
    reach = 2 * max(size) if None not in size else MAX_PIXELS**0.5
    if not isinstance(value, list) or len(value) < MIN_POLYGON or len(value) % 2:
        return False
    return all(_is_number(x) and abs(x) <= reach for x in value)


def _is_number(value: Any) -> bool:
    # Compared before it is converted, because JSON may hold integers that no float can.
    limit: Any = 1e300
    return isinstance(value, Real) and not isinstance(value, bool) and -limit <= value <= limit and math.isfinite(value)
