"""Box crops of masks, the training data of the mask tokenizer."""

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF


def box_crop(mask: Tensor, box: Tensor, size: int) -> Tensor:
    """A mask cut to its box and resized, without antialiasing steps or a threshold: edges become grey.

    Args:
        mask: (H, W) bool.
        box: (4,) xyxy pixels; cut out to whole pixels, at least one.
        size: side of the crop.

    Returns:
        (1, size, size) float32 in [0, 1].
    """
    height, width = mask.shape
    left, top = (
        min(max(math.floor(x), 0), limit - 1) for x, limit in zip(box[:2].tolist(), (width, height), strict=True)
    )
    right = min(max(math.ceil(float(box[2])), left + 1), width)
    bottom = min(max(math.ceil(float(box[3])), top + 1), height)
    cut = mask[None, top:bottom, left:right].to(torch.float32)
    return tvF.resize(cut, [size, size], tvF.InterpolationMode.BILINEAR, antialias=True).clamp(0, 1)
