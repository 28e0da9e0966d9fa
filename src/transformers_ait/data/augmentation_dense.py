"""Joint augmentation of an image and its dense maps.

Images are `tv_tensors.Image` (3, H, W) float32 in [0, 1]; maps are native maps of any kind (see `map_kinds_ait`).
Geometry moves both, colours leave maps alone, and no map is ever interpolated. All draws come from torch's default
generator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..map_kinds_ait import DepthKind, MapKind, resize_labels


class RandomDepthStrip(v2.Transform):
    """Overwrite all three channels of the image with the depth map, in a vertical strip (CutDepth, arXiv 2107.07684).

    The left edge is `int(a * W)`, the width `int(max((1 - a) * W * b * 0.75, 1))`, a and b uniform in [0, 1).

    Args:
        p: probability.
        max_depth: metres that become the image value 1.
    """

    def __init__(self, p: float = 0.25, max_depth: float = 10.0) -> None:
        super().__init__()
        self.p = p
        self.max_depth = max_depth

    def forward(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Image (3, H, W) in [0, 1] and depth (1, H, W) in metres to the same."""
        chance, a, b = torch.rand(3).tolist()
        if chance >= self.p:
            return image, depth
        width = image.shape[-1]
        left, extent = int(a * width), int(max((1 - a) * width * b * 0.75, 1))
        strip = slice(left, left + extent)
        pasted = image.clone()
        pasted[..., strip] = (depth[..., strip] / self.max_depth).clamp(0, 1)
        return tv_tensors.wrap(pasted, like=image), depth


class RandomBrightnessContrast(v2.Transform):
    """`a * x + b`, clamped to [0, 1].

    Args:
        brightness: b is uniform in [-brightness, brightness].
        contrast: a is uniform in [1 - contrast, 1 + contrast].
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, brightness: float = 0.2, contrast: float = 0.2) -> None:
        super().__init__()
        self.brightness = brightness
        self.contrast = contrast

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a and b."""
        return {"factor": 1 + _symmetric(self.contrast), "offset": _symmetric(self.brightness)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Image (3, H, W) to the same."""
        return tv_tensors.wrap((inpt * params["factor"] + params["offset"]).clamp(0, 1), like=inpt)


class RandomGamma(v2.Transform):
    """`x ** g`.

    Args:
        low: smallest g.
        high: largest g.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, low: float = 0.8, high: float = 1.2) -> None:
        super().__init__()
        self.low = low
        self.high = high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw g."""
        return {"gamma": self.low + (self.high - self.low) * torch.rand(()).item()}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Image (3, H, W) to the same."""
        return v2.functional.adjust_gamma(inpt, params["gamma"])


class RandomHueSaturationValue(v2.Transform):
    """Shift hue, saturation and value by random amounts.

    Args:
        hue: largest shift in turns of the colour circle.
        saturation: largest shift of the saturation, which lies in [0, 1].
        value: largest shift of the value, which lies in [0, 1].
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, hue: float = 20 / 180, saturation: float = 30 / 255, value: float = 20 / 255) -> None:
        super().__init__()
        self.hue = hue
        self.saturation = saturation
        self.value = value

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the three shifts."""
        return {name: _symmetric(getattr(self, name)) for name in ("hue", "saturation", "value")}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Image (3, H, W) to the same."""
        return tv_tensors.wrap(shift_hsv(inpt.as_subclass(Tensor), **params), like=inpt)


def shift_hsv(image: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Shift an image in HSV space; saturation and value are clamped, hue wraps around.

    torchvision adjusts saturation and brightness by factors only.

    Args:
        image: (3, H, W) in [0, 1].
        hue: turns of the colour circle.
        saturation: added to the saturation.
        value: added to the value.
    """
    high, low = image.amax(0), image.amin(0)
    chroma = high - low
    red, green, blue = image
    scale = chroma.clamp(min=1e-12)
    sixth = torch.where(
        high == red,
        (green - blue) / scale,
        torch.where(high == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    new_value = (high + value).clamp(0, 1)
    new_saturation = (chroma / high.clamp(min=1e-12) + saturation).clamp(0, 1)
    # Distance of each channel from the value, as a share of the chroma: a trapezoid over the hue.
    corners = image.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    position = (corners + sixth + 6 * hue).remainder(6)
    missing = torch.minimum(position, 4 - position).clamp(0, 1)
    return new_value * (1 - new_saturation * missing)


class MapTransform:
    """Flip and random crop of a native map alone, for training a tokenizer.

    Args:
        crop_size: side of the square crop in pixels.
        kind: of the map.
        flip: probability of a horizontal flip.
    """

    def __init__(self, crop_size: int, kind: MapKind, flip: float = 0.5) -> None:
        self.crop = v2.RandomCrop(crop_size)
        self.kind = kind
        self.flip = flip

    def __call__(self, native: Tensor) -> Tensor:
        """Map ([C,] H, W) to ([C,] S, S); ValueError if it is smaller than the crop."""
        if torch.rand(1) < self.flip:
            native = self.kind.flip(native)
        return self.crop(tv_tensors.Mask(native)).as_subclass(Tensor)


class DenseTransform:
    """Scale, depth strip, flip, crop and colours of an image and its maps.

    Args:
        crop_size: side of the square crop in pixels.
        kinds: of the maps by task.
        strip: probability of a depth strip in the image, from the first map of kind depth; without one there is none.
        flip: probability of a horizontal flip.
        colour: probability of each of brightness-contrast, gamma and hue-saturation-value, with the default ranges of
            albumentations.
        scale: least and largest factor that image and maps are resized by, uniform between them; the crop always
            fits. Metres of depth are divided by it: through the same lens, what looks larger is nearer. Other values
            stay, those in pixels included. (1, 1) draws nothing.

    Raises:
        ValueError: the factors are not positive and in order.
    """

    def __init__(
        self,
        crop_size: int,
        kinds: Mapping[str, MapKind],
        strip: float = 0.25,
        flip: float = 0.5,
        colour: float = 0.5,
        scale: Sequence[float] = (1.0, 1.0),
    ) -> None:
        self.low, self.high = scale
        if not 0 < self.low <= self.high:
            raise ValueError(f"scale must be two positive factors, the least first, got {list(scale)}.")
        self.crop_size = crop_size
        self.kinds = dict(kinds)
        self.depth = next((task for task, kind in self.kinds.items() if isinstance(kind, DepthKind)), None)
        self.strip = RandomDepthStrip(strip)
        self.flip = flip
        self.crop = v2.RandomCrop(crop_size)
        colours = (RandomBrightnessContrast(), RandomGamma(), RandomHueSaturationValue())
        self.colours = v2.Compose([v2.RandomApply([transform], p=colour) for transform in colours])

    def __call__(self, image: Tensor, maps: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (3, H, W) and native maps ([C,] H, W) by task to (3, S, S) and ([C,] S, S).

        Raises:
            ValueError: maps of other tasks than `kinds`, of another size than the image, or smaller than the crop.
        """
        if maps.keys() != self.kinds.keys():
            raise ValueError(f"maps must be of the tasks {list(self.kinds)}, got {list(maps)}.")
        moved = dict(maps)
        if (self.low, self.high) != (1, 1):
            image, moved = self._scaled(image, moved)
        if self.depth is not None:
            image, _ = self.strip(image, moved[self.depth][None])
        if torch.rand(1) < self.flip:
            image = v2.functional.horizontal_flip(image)
            moved = {task: self.kinds[task].flip(native) for task, native in moved.items()}
        # Crops keep the values of a mask as they are, of any number of channels.
        image, moved = self.crop(image, {task: tv_tensors.Mask(native) for task, native in moved.items()})
        return self.colours(image), {task: native.as_subclass(Tensor) for task, native in moved.items()}

    def _scaled(self, image: Tensor, maps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        sides = image.shape[-2:]
        factor = self.low + (self.high - self.low) * torch.rand(()).item()
        # An image that the crop fits stays large enough for it.
        factor = max(factor, min(1.0, self.crop_size / min(sides)))
        height, width = (round(side * factor) for side in sides)
        scaled = {task: resize_labels(native, (height, width)) for task, native in maps.items()}
        nearer = {task: x / factor if isinstance(self.kinds[task], DepthKind) else x for task, x in scaled.items()}
        return v2.functional.resize(image, [height, width], antialias=True), nearer


def dense_training_transform(
    crop_size: int,
    kinds: Mapping[str, MapKind],
    strip: float = 0.25,
    flip: float = 0.5,
    colour: float = 0.5,
    scale: Sequence[float] = (1.0, 1.0),
) -> DenseTransform:
    """The training augmentation of the original AiT, for any set of dense tasks; see `DenseTransform`."""
    return DenseTransform(crop_size, kinds, strip, flip, colour, scale)


def map_training_transform(crop_size: int, kind: MapKind, flip: float = 0.5) -> MapTransform:
    """The augmentation of one kind of map for training a tokenizer; see `MapTransform`."""
    return MapTransform(crop_size, kind, flip)


def _symmetric(limit: float) -> float:
    """Uniform in [-limit, limit]."""
    return (2 * torch.rand(()).item() - 1) * limit
