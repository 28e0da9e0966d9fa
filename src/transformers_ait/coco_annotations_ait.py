"""COCO annotations as pure functions: categories, boxes, masks from polygons and run-length encodings, and back."""

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_POLYGON = 6  # numbers: three corners


def contiguous_categories(categories: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Class index of every category id, in the order of the ids: COCO's 80 ids within 1..90 become 0..79.

    Args:
        categories: the `categories` of a COCO annotation file; only `id` is read.

    Raises:
        TypeError: they are no mappings with whole numbers as ids.
        ValueError: an id occurs twice.
    """
    if not isinstance(categories, Iterable):
        raise TypeError(f"categories must be the list of a COCO file, got {type(categories).__name__}.")
    entries = [*categories]
    for index, category in enumerate(entries):
        if not isinstance(category, Mapping) or not isinstance(category.get("id"), Integral):
            raise TypeError(
                f"categories[{index}] must be a dictionary with a whole number as id, got {category!r:.80}."
            )
    ids = [int(category["id"]) for category in entries]
    repeated = sorted({category_id for category_id in ids if ids.count(category_id) > 1})
    if repeated:
        raise ValueError(f"categories must have unique ids, but {repeated} occur more than once.")
    return {category_id: index for index, category_id in enumerate(sorted(ids))}


def annotation_box(annotation: Mapping[str, Any], image_size: tuple[int, int], where: str) -> Tensor | None:
    """Box of an annotation, clipped to its image.

    Args:
        annotation: with `bbox`, (x, y, width, height) in pixels.
        image_size: (height, width).
        where: names the annotation in error messages.

    Returns:
        (4,) float64 xyxy pixels; None for a box without area, as COCO has some.

    Raises:
        ValueError: no four finite numbers, negative sides, or a box outside the image.
    """
    given = annotation.get("bbox")
    box = given.tolist() if isinstance(given, np.ndarray | Tensor) else given
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_finite, box)):
        raise ValueError(f"{where} needs a bbox of four finite numbers (x, y, width, height), got {given!r:.80}.")
    x, y, width, height = map(float, box)
    if width < 0 or height < 0:
        raise ValueError(f"{where} has a bbox {list(box)} of negative size; it must be (x, y, width, height).")
    if width == 0 or height == 0:
        return None
    limit = torch.tensor([image_size[1], image_size[0]] * 2, dtype=torch.float64)
    clipped = torch.tensor([x, y, x + width, y + height], dtype=torch.float64).clamp(min=0).minimum(limit)
    if (clipped[2:] <= clipped[:2]).any():
        raise ValueError(
            f"{where} has a bbox {list(box)} (x, y, width, height) outside its image of {image_size[0]} x "
            f"{image_size[1]} (height x width); correct or remove it."
        )
    return clipped


def annotation_mask(annotation: Mapping[str, Any], image_size: tuple[int, int], where: str) -> Tensor:
    """Mask of an annotation.

    Args:
        annotation: with `segmentation`: polygons, a compressed or uncompressed run-length encoding, or an array.
        image_size: (height, width).
        where: names the annotation in error messages.

    Returns:
        (H, W) bool; empty where polygons enclose no pixel.

    Raises:
        ImportError: pycocotools is missing.
        ValueError: no segmentation, one of another size than the image, or one that does not decode.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, np.ndarray | Tensor):
        _check_size(segmentation.shape, image_size, where)
        return _positive(segmentation, where)
    if isinstance(segmentation, Mapping):
        return _decode_rle(segmentation, image_size, where)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str) and segmentation:
        return _fill_polygons(segmentation, image_size, where)
    raise ValueError(
        f"{where} needs a segmentation: polygons, a run-length encoding or an (H, W) array, got "
        f"{type(segmentation).__name__} {segmentation!r:.60}; pass return_segmentation_masks=False for boxes alone."
    )


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """COCO run-length encodings, ready for JSON, of masks (N, H, W) bool.

    Raises:
        ImportError: pycocotools is missing.
    """
    if len(masks) == 0:
        return []
    # pycocotools wants (H, W, N) in column-major order.
    encoded = _mask_tools().encode(np.asfortranarray(masks.cpu().permute(1, 2, 0).numpy().astype(np.uint8)))
    return [{"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def _mask_tools() -> Any:
    # Not an import statement, which would make pycocotools a requirement of every checkpoint that carries its code.
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise ImportError("Masks in COCO format need pycocotools: pip install 'transformers_ait[train]'.") from error


def _is_finite(value: Any) -> bool:
    # Compared before it is converted, because JSON may hold integers that no float can.
    limit: Any = sys.float_info.max
    return isinstance(value, Real) and -limit <= value <= limit


def _positive(mask: np.ndarray | Tensor, where: str) -> Tensor:
    """Where an (H, W) array of either kind is above 0."""
    if isinstance(mask, Tensor) and (mask.is_meta or mask.layout != torch.strided):
        raise ValueError(f"{where} has a mask without content, on {mask.device} in {mask.layout}; give a dense one.")
    try:
        inside = mask > 0
    except (TypeError, NotImplementedError) as error:
        raise ValueError(f"{where} has a mask of dtype {mask.dtype}; make it boolean.") from error
    return inside if isinstance(inside, Tensor) else torch.from_numpy(inside)


def _check_size(size: Any, image_size: tuple[int, int], where: str) -> None:
    given = tuple(size) if isinstance(size, Sequence) else size
    if given != tuple(image_size):
        raise ValueError(
            f"{where} has a mask of size {given}, but its upright image is {tuple(image_size)} (height, width)."
        )


def _decode_rle(rle: Mapping[str, Any], image_size: tuple[int, int], where: str) -> Tensor:
    if not {"size", "counts"} <= rle.keys():
        raise ValueError(f"{where} has a run-length encoding without size or counts; it has {sorted(rle)}.")
    _check_size(rle["size"], image_size, where)
    tools, (height, width) = _mask_tools(), image_size
    try:
        counts = rle["counts"]
        if isinstance(counts, str | bytes):
            encoded = {"size": [height, width], "counts": counts}
        else:
            encoded = tools.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
        mask = tools.decode(encoded)
    except (ValueError, TypeError, OverflowError, UnicodeError) as error:
        raise ValueError(f"{where} has a run-length encoding that does not decode ({error}).") from error
    if _runs_are_short(tools, encoded, height * width):
        raise ValueError(f"{where} has a run-length encoding that ends before the mask of {height} x {width} does.")
    return torch.from_numpy(mask).bool()


def _runs_are_short(tools: Any, encoded: Mapping[str, Any], pixels: int) -> bool:
    """Whether the runs sum to less than `pixels`; pycocotools refuses only longer ones and leaves the rest to luck."""
    try:
        tools.decode({"size": [pixels - 1, 1], "counts": encoded["counts"]})
    except ValueError:
        return False
    return True


def _fill_polygons(polygons: Sequence[Any], image_size: tuple[int, int], where: str) -> Tensor:
    height, width = image_size
    reach = max(image_size)
    for polygon in polygons:
        if not isinstance(polygon, Sequence | np.ndarray) or isinstance(polygon, str) or len(polygon) % 2:
            raise ValueError(f"{where} has a polygon that is no list x1, y1, x2, y2, ...: {polygon!r:.60}.")
        # Some of COCO's corners lie just outside; filling one far away would take memory without bound.
        if not all(isinstance(x, int | float | np.number) and -reach <= x <= 2 * reach for x in polygon):
            raise ValueError(
                f"{where} has a polygon with corners that are no numbers or far outside its image of {height} x "
                f"{width}: {polygon!r:.60}."
            )
    proper = [list(map(float, polygon)) for polygon in polygons if len(polygon) >= MIN_POLYGON]
    if not proper:
        return torch.zeros(height, width, dtype=torch.bool)
    tools = _mask_tools()
    return torch.from_numpy(tools.decode(tools.merge(tools.frPyObjects(proper, height, width)))).bool()
