"""COCO annotations of images to labels in the pixels of a model's input."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers.utils import logging

from .coco_annotations_ait import annotation_box, annotation_mask
from .mask_geometry_ait import proper_boxes

logger = logging.get_logger(__name__)


class FittedSize(NamedTuple):
    """Size of a resized image, and the factor from its own pixels to the resized ones.

    Args:
        height: pixels.
        width: pixels.
        scale: resized pixels per original pixel, the same along both axes.
    """

    height: int
    width: int
    scale: float


def fitted_size(image_size: tuple[int, int], longest_edge: int) -> FittedSize:
    """Size of an image whose longest side becomes `longest_edge`, keeping aspect, half a pixel rounded up.

    Boxes are multiplied by `scale` on the way in, and divided by it on the way out.
    """
    scale = longest_edge / max(image_size)
    height, width = (max(1, int(side * scale + 0.5)) for side in image_size)
    return FittedSize(height, width, scale)


@dataclass(frozen=True)
class AnnotationReader:
    """Reads the annotations of one call and counts what it skips."""

    category_to_index: Mapping[int, int]
    with_masks: bool
    skipped: Counter[str]

    def read(
        self, target: Mapping[str, Any], size: tuple[int, int], fitted: FittedSize, padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Labels of one image, whose own size is `size`."""
        boxes, classes, masks, ids = [], [], [], []
        for annotation in target["annotations"]:
            where = f"Annotation {annotation.get('id')} of image {target.get('image_id')}"
            read = self._read_object(annotation, size, fitted, where)
            if read is not None:
                boxes.append(read[0])
                classes.append(self._class_index(annotation, where))
                ids.append(annotation.get("id"))
                masks += [] if read[1] is None else [pad_map(read[1], padded)]
        label = {
            "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4),
            "class_labels": torch.tensor(classes, dtype=torch.long),
            "image_size": torch.tensor([fitted.height, fitted.width]),
        }
        if self.with_masks:
            label["masks"] = torch.stack(masks) if masks else torch.zeros(0, *padded, dtype=torch.bool)
        if _are_whole([target.get("image_id"), *ids]):
            label |= {"image_id": torch.tensor(int(target["image_id"])), "annotation_ids": torch.tensor(ids).long()}
        return label

    def warn_of_skipped(self) -> None:
        """One warning for the whole call."""
        if self.skipped:
            counts = " and ".join(f"{count} {kind}" for kind, count in sorted(self.skipped.items()))
            logger.warning(f"Skipped annotations that hold no object to learn: {counts}.")

    def _read_object(
        self, annotation: Mapping[str, Any], size: tuple[int, int], fitted: FittedSize, where: str
    ) -> tuple[Tensor, Tensor | None] | None:
        """Box and mask in resized pixels; None for an annotation that is skipped."""
        crowd = annotation.get("iscrowd", 0)
        if not isinstance(crowd, Integral) or crowd not in (0, 1):
            raise ValueError(f"{where} has iscrowd {crowd!r:.60}; it must be 0 or 1.")
        if crowd:
            self.skipped["crowd"] += 1
            return None
        box = annotation_box(annotation, size, where)
        scaled = None if box is None else (box * fitted.scale).float()
        if scaled is None or not proper_boxes(scaled):
            self.skipped["without area"] += 1
            return None
        mask = annotation_mask(annotation, size, where) if self.with_masks else None
        if mask is not None and not mask.any():
            self.skipped["without area"] += 1
            return None
        if mask is not None and size != (fitted.height, fitted.width):
            # NEAREST_EXACT samples at pixel centres, as the image's filter does; NEAREST is half a pixel off.
            resized = tvF.resize(mask[None].byte(), [fitted.height, fitted.width], InterpolationMode.NEAREST_EXACT)
            mask = resized[0].bool()
        return scaled, mask

    def _class_index(self, annotation: Mapping[str, Any], where: str) -> int:
        category_id: Any = annotation.get("category_id")
        if not isinstance(category_id, int | str | np.integer) or category_id not in self.category_to_index:
            raise ValueError(
                f"{where} has category_id {category_id!r:.60}, which category_to_index does not hold; it holds "
                f"{len(self.category_to_index)} ids: {list(self.category_to_index)}."
            )
        return int(self.category_to_index[category_id])  # type: ignore[index]


def checked_targets(annotations: Any, count: int) -> Sequence[Mapping[str, Any]]:
    """Annotations as one entry per image.

    Raises:
        TypeError: they are of another form.
        ValueError: of another number of images than `count`.
    """
    targets = [annotations] if isinstance(annotations, Mapping) else annotations
    form = '{"image_id": 1, "annotations": [...]} per image'
    if not isinstance(targets, Sequence) or not all(isinstance(target, Mapping) for target in targets):
        raise TypeError(f"annotations must be {form}, got {type(annotations).__name__}.")
    if len(targets) != count:
        raise ValueError(f"annotations must be {form}, got {len(targets)} for {count} images.")
    for index, target in enumerate(targets):
        entries = target.get("annotations")
        if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
            raise TypeError(f"annotations[{index}] must be {form}, got the keys {sorted(map(str, target))}.")
    return targets


def check_categories(category_to_index: Any) -> None:
    """Raise a ValueError for class indices that are none."""
    wrong = {key: index for key, index in category_to_index.items() if not _are_whole([index]) or index < 0}
    if wrong:
        raise ValueError(
            f"category_to_index must map category ids to class indices counted from 0, got {wrong!r:.120}; pass "
            "contiguous_categories(coco['categories'])."
        )


def _are_whole(ids: Sequence[Any]) -> bool:
    """Whether all ids fit int64; COCO's do, but nothing is trained on them."""
    return all(isinstance(number, Integral) and -(2**63) <= int(number) < 2**63 for number in ids)


def pad_map(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros at bottom and right of (..., H, W)."""
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]))


__all__ = ["AnnotationReader", "FittedSize", "check_categories", "checked_targets", "fitted_size", "pad_map"]
