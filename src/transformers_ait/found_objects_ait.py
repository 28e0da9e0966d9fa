"""Predicted objects of an image in its own pixels, and the forms in which transformers and COCO want them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .coco_annotations_ait import encode_masks
from .mask_geometry_ait import MASK_THRESHOLD, paste_masks, proper_boxes

BACKGROUND = -1  # in segmentation maps; segment ids count from 0


@dataclass(frozen=True)
class FoundObjects:
    """Predicted objects of one image in its own pixels, the most certain first.

    `mask_boxes` are the predicted boxes, in whose frame `mask_values` are; `boxes` are clipped to the image.
    """

    boxes: Tensor
    mask_boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_values: Tensor | None
    image_size: tuple[int, int]

    def masks(self, threshold: float) -> Iterator[Tensor]:
        """Masks (H, W) bool, one object at a time, which bounds the memory."""
        assert self.mask_values is not None, "checked by require_masks"
        # Bilinear sampling is linear and zero outside, so scaled values at one fixed threshold are values at another.
        values = self.mask_values * (MASK_THRESHOLD / threshold)
        for mask_values, box in zip(values, self.mask_boxes, strict=True):
            yield paste_masks(mask_values[None], box[None], *self.image_size)[0]

    def segment(self, index: int, segment_id: int) -> dict[str, Any]:
        """What transformers tells of a segment."""
        score, label = self.scores[index].item(), self.labels[index].item()
        return {"id": segment_id, "label_id": label, "was_fused": False, "score": round(score, 6)}


def proper_objects(
    outputs: Any, index: int, threshold: float, scale: float, image_size: tuple[int, int]
) -> FoundObjects:
    """Objects of one image of a batch that have an area and at least the score `threshold`.

    Args:
        outputs: of a model, as `check_objects` wants them.
        index: of the image in the batch.
        threshold: least score.
        scale: pixels of the model's input per pixel of the image.
        image_size: (height, width).
    """
    boxes, scores = (getattr(outputs, name)[index].detach().to(torch.float32) for name in ("boxes", "scores"))
    labels = outputs.class_labels[index]
    boxes = boxes / scale
    limit = boxes.new_tensor([image_size[1], image_size[0]] * 2)
    clipped = boxes.clamp(min=0).minimum(limit)
    order = scores.argsort(descending=True, stable=True)
    kept = order[(proper_boxes(boxes) & proper_boxes(clipped) & (scores >= threshold))[order]]
    values = getattr(outputs, "mask_values", None)
    masks = None if values is None else values[index, kept].detach().to(torch.float32)
    return FoundObjects(clipped[kept], boxes[kept], scores[kept], labels[kept], masks, image_size)


def check_objects(outputs: Any) -> None:
    """Raise a ValueError for boxes, scores, classes and masks that are not of the same objects."""
    count = tuple(outputs.boxes.shape[:2])
    forms: dict[str, tuple[str, int]] = {
        **{"boxes": ("(B, N, 4)", 3), "scores": ("(B, N)", 2), "class_labels": ("(B, N)", 2)},
        "mask_values": ("(B, N, h, w)", 4),
    }
    for name, (form, dimensions) in forms.items():
        values = getattr(outputs, name, None)
        if values is None and name == "mask_values":
            continue
        shape = None if values is None else tuple(values.shape)
        if shape is None or len(shape) != dimensions or shape[:2] != count or (name == "boxes" and shape[2] != 4):
            raise ValueError(
                f"outputs.{name} must be {form}, of the {count[1]} objects of {count[0]} images that outputs.boxes "
                f"has, got {'None' if shape is None else f'shape {shape}'}; pass what the model returned."
            )


def require_masks(outputs: Any, mask_threshold: float) -> None:
    """Raise a ValueError where there are no masks, or for a threshold that is not above 0."""
    if getattr(outputs, "mask_values", None) is None:
        raise ValueError(
            "outputs.mask_values is None, so there are no masks; call the model without labels, and with the task "
            "'instance'."
        )
    if not isinstance(mask_threshold, Real) or not mask_threshold > 0:
        raise ValueError(f"mask_threshold must be above 0, the value outside of boxes, got {mask_threshold}.")


def segmentation_map(objects: FoundObjects, mask_threshold: float, overlap_threshold: float) -> dict[str, Any]:
    """One map (H, W) int32 of segment ids, in which a surer object hides others, and what its segments are.

    An object of whose mask no more than the share `overlap_threshold` is left to see is left out.
    """
    device = objects.boxes.device
    segmentation = torch.full(objects.image_size, BACKGROUND, dtype=torch.int32, device=device)
    segments: list[dict[str, Any]] = []
    for index, mask in enumerate(objects.masks(mask_threshold)):
        visible = mask & (segmentation == BACKGROUND)
        if visible.sum() > overlap_threshold * mask.sum():
            segmentation[visible] = len(segments)
            segments.append(objects.segment(index, len(segments)))
    return {"segmentation": segmentation, "segments_info": segments}


def separate_masks(objects: FoundObjects, mask_threshold: float, encoded: bool) -> dict[str, Any]:
    """A mask per object, (N, H, W) bool or run-length encoded, and what the segments are; empty masks are left out."""
    segments: list[dict[str, Any]] = []
    forms: list[Any] = []
    for index, mask in enumerate(objects.masks(mask_threshold)):
        if mask.any():
            segments.append(objects.segment(index, len(segments)))
            forms += encode_masks(mask[None]) if encoded else [mask[None]]
    if encoded:
        return {"segmentation": forms, "segments_info": segments}
    empty = torch.zeros(0, *objects.image_size, dtype=torch.bool, device=objects.boxes.device)
    return {"segmentation": torch.cat([empty, *forms]), "segments_info": segments}


def coco_entries(objects: FoundObjects, image_id: int, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """COCO results with boxes.

    Raises:
        ValueError: a class without a category.
    """
    unknown = sorted(set(objects.labels.tolist()) - category_ids.keys())
    if unknown:
        raise ValueError(f"category_to_index names no category for the class indices {unknown}; pass the model's own.")
    origin, corner = objects.boxes.chunk(2, dim=1)
    boxes = torch.cat((origin, corner - origin), dim=1)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(objects.labels.tolist(), boxes.tolist(), objects.scores.tolist(), strict=True)
    ]


__all__ = [
    "FoundObjects",
    "check_objects",
    "coco_entries",
    "proper_objects",
    "require_masks",
    "segmentation_map",
    "separate_masks",
]
