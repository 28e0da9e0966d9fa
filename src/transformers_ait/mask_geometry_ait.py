"""Masks between image frame and box frame: RoIAlign crops for training, pasting for inference."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

MASK_THRESHOLD = 0.5
# Pixels pasted at a time over all objects; bounds the memory at about 100 MB whatever the image size.
PASTE_BUDGET = 4_000_000


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

    Objects are pasted in groups that keep the working memory bounded.

    Args:
        mask_values: (N, h, w), values around [0, 1].
        boxes: (N, 4) xyxy pixels of the image; inverted and empty boxes give empty masks.
        height: image height.
        width: image width.

    Returns:
        (N, height, width) bool.
    """
    pasted = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    group = max(1, PASTE_BUDGET // (height * width))
    keep = proper_boxes(boxes).nonzero().squeeze(1)
    for indices in keep.split(group):
        pasted[indices] = _paste_group(mask_values[indices].float(), boxes[indices].float(), height, width)
    return pasted


def _paste_group(mask_values: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    x = _box_coordinates(boxes[:, 0], boxes[:, 2], width)
    y = _box_coordinates(boxes[:, 1], boxes[:, 3], height)
    grid = torch.stack((x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1)
    sampled = F.grid_sample(mask_values[:, None], grid, align_corners=False)
    return sampled[:, 0] >= MASK_THRESHOLD


def _box_coordinates(start: Tensor, stop: Tensor, length: int) -> Tensor:
    """Pixel centres (N, length) of the image in box coordinates, -1 at `start` and 1 at `stop`."""
    centres = torch.arange(length, device=start.device, dtype=torch.float32) + 0.5
    return (centres - start[:, None]) / (stop - start)[:, None] * 2 - 1
