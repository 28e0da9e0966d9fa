"""Joint augmentation of an image, its boxes and its masks, as `torchvision.transforms.v2` transforms.

Images are `tv_tensors.Image` (3, H, W), boxes `tv_tensors.BoundingBoxes` (N, 4) xyxy, masks `tv_tensors.Mask`
(N, H, W). All draws come from torch's default generator.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

COLOUR_JITTER = (0.4, 0.4, 0.4, 0.05)  # largest changes of brightness, contrast, saturation and hue
MIN_SIDE = 0.01  # pixels; smaller boxes hold no object


class RandomScaleCrop(v2.Transform):
    """Large-scale jitter and random crop (Simple Copy-Paste, arXiv 2012.07177), in one resampling.

    The longest side is scaled to `size` times a factor uniform in `scale`, then a random window of at most
    `size` x `size` is cut. Only the window is resampled, which is what makes factors of 3 affordable. Smaller results
    are left to be padded.

    Args:
        size: largest side of the result in pixels.
        scale: least and largest factor.

    Raises:
        ValueError: the factors are not positive, or in the wrong order.
    """

    def __init__(self, size: int, scale: Sequence[float] = (0.1, 3.0)) -> None:
        super().__init__()
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two positive factors, the least first, got {list(scale)}.")
        self.size = size
        self.scale = tuple(scale)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window, in pixels of the input, and the size that it is resized to."""
        sides = v2.functional.get_size(flat_inputs[0])
        jitter, *places = torch.rand(3).tolist()
        low, high = self.scale
        factor = (low + (high - low) * jitter) * self.size / max(sides)
        spans = [_window(side, factor, self.size, place) for side, place in zip(sides, places, strict=True)]
        (top, height, new_height), (left, width, new_width) = spans
        return {"top": top, "left": left, "height": height, "width": width, "size": [new_height, new_width]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut and resize; bilinear for images, the nearest pixel for masks."""
        # Masks take NEAREST_EXACT, which samples at pixel centres as the image's filter does.
        nearest = getattr(inpt, "dtype", None) is torch.bool
        mode = InterpolationMode.NEAREST_EXACT if nearest else InterpolationMode.BILINEAR
        return tvF.resized_crop(inpt, **params, interpolation=mode, antialias=not nearest)


class DropSmallBoxes(v2.Transform):
    """Drop objects whose box is thinner than 0.01 pixels, from dictionaries with `boxes`, `masks` and `labels`.

    torchvision's `SanitizeBoundingBoxes` takes no limit below 1 pixel.
    """

    def forward(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample without them; (N, 4) boxes, (N, H, W) masks, (N,) labels to fewer."""
        boxes = sample["boxes"]
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1).as_subclass(Tensor)
        chosen = {name: sample[name][kept] for name in ("boxes", "masks", "labels")}
        for name in ("boxes", "masks"):
            chosen[name] = tv_tensors.wrap(chosen[name], like=sample[name])
        return {**sample, **chosen}


def _window(side: int, factor: float, limit: int, place: float) -> tuple[int, int, int]:
    """Start and extent in pixels of the input, and extent in the result, along one axis."""
    scaled = max(1, round(side * factor))
    if scaled <= limit:
        return 0, side, scaled
    extent = max(1, round(limit / factor))
    return round(place * (side - extent)), extent, limit


def instance_training_transform(
    size: int, scale: Sequence[float] = (0.1, 3.0), flip: float = 0.5, colour: float = 0.0
) -> v2.Compose:
    """The training augmentation of the original AiT: large-scale jitter, random crop, flip; the crop may be empty.

    Args:
        size: largest side of the result in pixels.
        scale: factors of the jitter, relative to an image whose longest side is `size`.
        flip: probability of a horizontal flip.
        colour: probability of other brightness, contrast, saturation and hue; 0 in the original.

    Returns:
        A transform of dictionaries with `image`, `boxes`, `masks` and `labels` (class indices (N,)), from which
        objects with boxes under 0.01 pixels are dropped.
    """
    return v2.Compose(
        [
            RandomScaleCrop(size, scale),
            v2.RandomHorizontalFlip(flip),
            *([v2.RandomApply([v2.ColorJitter(*COLOUR_JITTER)], colour)] if colour else []),
            DropSmallBoxes(),
        ]
    )
