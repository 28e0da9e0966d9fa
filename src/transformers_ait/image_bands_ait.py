"""Large photographs, resized band by band in the same bits as in one piece, so that no further copy of them is made."""

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LARGE_PIXELS = 1 << 22  # below, whole copies do not matter
BAND_PIXELS = 1 << 20


class ArrayPicture:
    """An array (H, W, C) with as much of a Pillow picture's interface as bands need."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.height, self.width = array.shape[:2]

    def crop(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """Pixels within (left, top, right, bottom), not copied."""
        left, top, right, bottom = box
        return self.array[top:bottom, left:right]


class LargePicture:
    """An upright picture that becomes a tensor where it is resized, and only in part; until then it has a shape.

    Args:
        image: decoded.
        convert: what `image.crop` gives, of any size, to a uint8 tensor (C, H, W), pixel by pixel.
    """

    device = torch.device("cpu")

    def __init__(self, image: Image.Image | ArrayPicture, convert: Callable[[Any], Tensor]):
        self.image = image
        self.convert = convert
        self.shape = torch.Size((convert(image.crop((0, 0, 1, 1))).shape[0], image.height, image.width))

    def rows(self, first: int, last: int) -> Tensor:
        """Some of its rows (C, last - first, W)."""
        return self.convert(self.image.crop((0, first, self.image.width, last)))


def can_be_in_bands(image: Image.Image | ArrayPicture, resample: Any) -> bool:
    """Whether a picture is large, and resizing is done in 8 bits: along rows first, and then along columns."""
    if image.width * image.height < LARGE_PIXELS:
        return False
    if resample in (None, Image.Resampling.BILINEAR):
        # torchvision takes floating-point numbers elsewhere.
        capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        return capable or platform.machine() in ("aarch64", "arm64")
    return resample in (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)


def resize_in_bands(
    picture: LargePicture, height: int, width: int, resize: Callable[[Tensor, int, int], Tensor]
) -> Tensor:
    """Resize a picture: all bands to their final width, and what results to the final height.

    Args:
        picture: a large one.
        height: of the result.
        width: of the result.
        resize: tensor to one of another height and width.
    """
    total, step = picture.shape[-2], max(1, BAND_PIXELS // picture.shape[-1])
    bands = [(first, min(first + step, total)) for first in range(0, total, step)]
    narrow = torch.cat([resize(picture.rows(*band), band[1] - band[0], width) for band in bands], dim=-2)
    return resize(narrow, height, width)


__all__ = ["ArrayPicture", "LargePicture", "can_be_in_bands", "resize_in_bands"]
