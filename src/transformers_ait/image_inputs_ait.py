"""What the image processors of this family share: images of any kind to upright 8-bit RGB, and sizes of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ImageInput, load_image
from transformers.utils import logging

logger = logging.get_logger(__name__)

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # older Pillow opens 16-bit PNG as "I"
SIXTEEN_TO_EIGHT_BIT = 257.0  # 65535 / 255

TargetSizes = Sequence[tuple[int, int]] | Tensor | None


class AiTImageProcessorBase(TorchvisionBackend):
    """Takes PIL images in any mode, NumPy arrays, torch tensors, paths and URLs, alone, in lists or batches."""

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[Any]:
        if isinstance(images, (list, tuple)):
            return [image for item in images for image in self._prepare_images_structure(item, expected_ndims)]
        if isinstance(images, (str, Path)):
            return [_open_image(images)]
        if isinstance(images, Image.Image):
            return [images]
        if not isinstance(images, (np.ndarray, Tensor)):
            raise TypeError(
                "images must be PIL images, NumPy arrays, torch tensors, paths or URLs, or lists of them, "
                f"got {type(images).__name__}."
            )
        if images.ndim not in (2, 3, 4) or 0 in images.shape:
            raise ValueError(
                "images must be of shape (H, W), (H, W, C), (C, H, W) or a batch of the latter two, "
                f"got {tuple(images.shape)}."
            )
        return list(images) if images.ndim == 4 else [images]

    def process_image(self, image: Any, *args: Any, do_rescale: bool | None = None, **kwargs: Any) -> Tensor:
        """Convert one image of any kind to a (3, H, W) tensor with pixels in 0..255."""
        image = _upright(image) if isinstance(image, Image.Image) else _eight_bit(image)
        tensor = super().process_image(image, *args, **kwargs)
        if do_rescale and tensor.is_floating_point() and tensor.max() <= 1:
            logger.warning_once(
                "A floating-point image has no pixel above 1, but is divided by 255 as well: "
                "pass do_rescale=False for pixels in 0..1."
            )
        return tensor

    def rescale(self, image: Tensor, scale: float, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Multiply by `scale`, as a division: x / 255 and x * (1 / 255) differ in the last bit of float32."""
        return image.to(torch.float32) / (1.0 / scale)


def checked_target_sizes(target_sizes: TargetSizes, batch_size: int) -> list[tuple[int, int]] | None:
    """Target sizes as a list of (height, width), one for each image of the batch; None stays None.

    Raises:
        ValueError: another number of sizes than images, or a size that is no pair of whole pixels.
    """
    if target_sizes is None:
        return None
    sizes = target_sizes.tolist() if isinstance(target_sizes, (Tensor, np.ndarray)) else list(target_sizes)
    if len(sizes) != batch_size:
        raise ValueError(f"target_sizes must hold one (height, width) per image, got {len(sizes)} for {batch_size}.")
    checked = []
    for index, size in enumerate(sizes):
        pair = size.tolist() if isinstance(size, (Tensor, np.ndarray)) else size
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or any(int(edge) != edge or edge < 1 for edge in pair):
            raise ValueError(f"target_sizes[{index}] must be (height, width) in whole pixels, got {size!r}.")
        checked.append((int(pair[0]), int(pair[1])))
    return checked


def _open_image(source: str | Path) -> Image.Image:
    if str(source).startswith(("http://", "https://")):
        return load_image(str(source))
    return Image.open(source)


def _upright(image: Image.Image) -> Image.Image | np.ndarray | Tensor:
    """Decode, apply the EXIF orientation, and scale 16-bit grey to 8 bits, which Pillow's own conversion would clip."""
    try:
        image.load()
    except (OSError, SyntaxError) as error:
        name = getattr(image, "filename", "") or "given as an open image"
        raise OSError(f"The image file {name} cannot be decoded ({error}); replace or remove it.") from error
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT_MODES:
        return _eight_bit(np.clip(np.array(image), 0, 65535).astype(np.uint16))
    return image


def _eight_bit(image: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Scale 16-bit and boolean pixels to 0..255; others pass."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint16:
            return np.round(image.astype(np.float32) / SIXTEEN_TO_EIGHT_BIT).astype(np.uint8)
        return image.astype(np.uint8) * np.uint8(255) if image.dtype == np.bool_ else image
    if image.dtype == torch.uint16:
        return (image.to(torch.float32) / SIXTEEN_TO_EIGHT_BIT).round().to(torch.uint8)
    return image.to(torch.uint8) * 255 if image.dtype == torch.bool else image
