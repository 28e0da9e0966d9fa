"""Masks between image frame and box frame: RoIAlign crops for training, pasting for inference."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

MASK_THRESHOLD = 0.5


def crop_masks(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Binary crops of masks at their boxes: RoIAlign with adaptive sampling, threshold 0.5.

    Args:
        masks: (N, H, W), nonzero inside the object.
        boxes: (N, 4) xyxy pixels, one for each mask.
        size: side of a crop.

    Returns:
        (N, size, size) float32 of 0 and 1.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, size, size, dtype=torch.float32)
    index = torch.arange(len(boxes), device=boxes.device, dtype=torch.float32)[:, None]
    rois = torch.cat((index, boxes.float()), dim=1)
    crops = roi_align((masks > 0).float()[:, None], rois, size, sampling_ratio=-1, aligned=True)
    return (crops[:, 0] >= MASK_THRESHOLD).float()


def proper_boxes(boxes: Tensor) -> Tensor:
    """Which boxes (..., 4) have a positive width and height."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def paste_masks(mask_values: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Paste box-frame masks into the image by bilinear sampling at pixel centres, zero outside, threshold 0.5.

    Each object is sampled only where its box can reach, one object at a time, which bounds time and memory.

    Args:
        mask_values: (N, h, w), values around [0, 1].
        boxes: (N, 4) xyxy pixels of the image; inverted and empty boxes give empty masks.
        height: image height.
        width: image width.

    Returns:
        (N, height, width) bool.
    """
    mask_values, boxes = mask_values.float(), boxes.float()
    pasted = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    columns = _reach(boxes[:, 0], boxes[:, 2], mask_values.shape[2], width)
    rows = _reach(boxes[:, 1], boxes[:, 3], mask_values.shape[1], height)
    for index in proper_boxes(boxes).nonzero().flatten().tolist():
        (left, right), (top, bottom) = columns[index], rows[index]
        if left < right and top < bottom:
            x = _box_coordinates(boxes[index, 0::2], left, right)
            y = _box_coordinates(boxes[index, 1::2], top, bottom)
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
            sampled = F.grid_sample(mask_values[index, None, None], grid[None], align_corners=False)
            pasted[index, top:bottom, left:right] = sampled[0, 0] >= MASK_THRESHOLD
    return pasted


def _reach(start: Tensor, stop: Tensor, samples: int, length: int) -> list[list[int]]:
    """First and last + 1 of the pixels that masks of `samples` values between `start` and `stop` (N,) can cover."""
    # Bilinear sampling reaches half a value beyond the box; one pixel more leaves room for rounding.
    margin = (stop - start) / (2 * samples) + 1
    first, last = (start - margin).floor(), (stop + margin).ceil()
    return torch.stack((first, last), dim=1).nan_to_num(nan=0.0).clamp(0, length).long().tolist()


def _box_coordinates(sides: Tensor, first: int, last: int) -> Tensor:
    """Centres of the pixels `first` to `last` - 1 in box coordinates, -1 and 1 at the two `sides` of the box."""
    centres = torch.arange(first, last, device=sides.device, dtype=torch.float32) + 0.5
    return (centres - sides[:1]) / (sides[1:] - sides[:1]) * 2 - 1
