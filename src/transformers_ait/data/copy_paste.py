"""Objects cut out of one photograph and pasted onto another (Simple Copy-Paste, arXiv 2012.07177).

Samples are the dictionaries of `augmentation_instance`: `image` (3, H, W), `boxes` (N, 4) xyxy, `masks` (N, H, W) bool,
`labels` (N,). All draws come from torch's default generator.
"""

import glob
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as tvF

from .depth_files import IMAGE_SUFFIXES

LEAST_VISIBLE = 0.2  # an object with less of its area in sight is no longer asked for
SMALLEST_CROP = 0.5  # of a background's sides


class Backgrounds:
    """Pictures without objects of the classes that are learnt, to paste objects onto.

    Args:
        places: folders, searched with their subfolders, or patterns of files ("photos/**/rgb_*.jpg").

    Raises:
        FileNotFoundError: there is no picture at a place.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self.files: list[str] = []
        for place in places:
            pattern = os.path.join(glob.escape(place), "**", "*") if os.path.isdir(place) else place
            found = sorted(x for x in glob.glob(pattern, recursive=True) if x.lower().endswith(IMAGE_SUFFIXES))
            if not found:
                raise FileNotFoundError(
                    f"There is no background at {place}; give a folder of pictures or a pattern of files, as in "
                    f"'photos/**/rgb_*.jpg'; pictures end in {', '.join(IMAGE_SUFFIXES)}."
                )
            self.files += found

    def draw(self, size: tuple[int, int]) -> dict[str, Any]:
        """A random window of a random picture, flipped or not, as a sample (3, *size) without objects.

        Raises:
            ValueError: the picture cannot be read.
        """
        path = self.files[int(torch.randint(len(self.files), ()))]
        try:
            with Image.open(path) as opened:
                picture = tvF.pil_to_tensor(opened.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"The background {path} cannot be read: {error}. Remove the file.") from error
        span, down, right, flip = torch.rand(4).tolist()
        share = SMALLEST_CROP + (1 - SMALLEST_CROP) * span
        # The largest window of the wanted shape, times the share.
        scale = share * min(picture.shape[1] / size[0], picture.shape[2] / size[1])
        height, width = (max(1, int(side * scale)) for side in size)
        top, left = int(down * (picture.shape[1] - height)), int(right * (picture.shape[2] - width))
        picture = tvF.resized_crop(picture, top, left, height, width, list(size), antialias=True)
        if flip < 0.5:
            picture = tvF.horizontal_flip(picture)
        return {
            "image": tv_tensors.Image(picture),
            "boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.bool)),
            "labels": torch.zeros(0, dtype=torch.long),
        }


def paste_objects(target: dict[str, Any], source: dict[str, Any], chosen: Tensor) -> dict[str, Any]:
    """The target with some objects of the source over it, in the source's order, at the source's pixels.

    Where the source is smaller than the target it is placed at random, where it is larger it is cut. Objects of the
    target lose the pixels that are covered, and their boxes shrink to what is seen; those of which less than a fifth
    is left are dropped, and so are pasted objects that lie outside.

    Args:
        target: sample of size (H, W).
        source: sample of any size.
        chosen: (N,) bool, the objects of the source to paste.

    Returns:
        A sample of the target's size, its own objects first.
    """
    size = target["image"].shape[-2:]
    image, masks = _placed(source["image"], source["masks"][chosen].as_subclass(Tensor), size)
    covered = masks.any(dim=0)
    before = target["masks"].as_subclass(Tensor)
    after = before & ~covered
    boxes = target["boxes"].as_subclass(Tensor).clone()
    areas, seen = before.sum(dim=(1, 2)), after.sum(dim=(1, 2))
    kept = seen > LEAST_VISIBLE * areas
    shrunk = kept & (seen < areas)  # others keep boxes that may be finer than pixels
    boxes[shrunk] = _boxes(after[shrunk])
    inside = masks.sum(dim=(1, 2)) > LEAST_VISIBLE * source["masks"][chosen].as_subclass(Tensor).sum(dim=(1, 2))
    masks = masks[inside]
    pasted = torch.where(covered, image, target["image"].as_subclass(Tensor))
    return {
        "image": tv_tensors.wrap(pasted, like=target["image"]),
        "boxes": tv_tensors.wrap(torch.cat([boxes[kept], _boxes(masks)]), like=target["boxes"]),
        "masks": tv_tensors.wrap(torch.cat([after[kept], masks]), like=target["masks"]),
        "labels": torch.cat([target["labels"][kept], source["labels"][chosen][inside]]),
    }


def some_objects(count: int) -> Tensor:
    """A random choice (count,) bool of objects, one at least where there is one."""
    chosen = torch.rand(count) < 0.5
    if count and not chosen.any():
        chosen[int(torch.randint(count, ()))] = True
    return chosen


def _boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) float32 xyxy around masks (N, H, W), the right and lower edge past the last pixel."""
    return masks_to_boxes(masks).float() + torch.tensor([0.0, 0.0, 1.0, 1.0]) if len(masks) else torch.zeros(0, 4)


def _placed(image: Tensor, masks: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """An image and masks on a canvas of another size, at a random place where there is room, else cut at random."""
    height, width = image.shape[-2:]
    shifts = [_shift(own, side) for own, side in zip((height, width), size, strict=True)]
    # Negative padding cuts.
    padding = (shifts[1], size[1] - width - shifts[1], shifts[0], size[0] - height - shifts[0])
    return F.pad(image.as_subclass(Tensor), padding), F.pad(masks, padding)


def _shift(own: int, side: int) -> int:
    """Where the first of `own` pixels comes to lie among `side`, below 0 where some are cut."""
    spare = side - own
    draw = int(torch.randint(abs(spare) + 1, ()))
    return draw if spare >= 0 else -draw
