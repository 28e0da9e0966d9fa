"""Objects drawn over photographs."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import masks_to_boxes

from .visualization_colors import INK

MASK_OPACITY = 0.45


def draw_instances(
    image: Image.Image | np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float] | Tensor | None = None,
    masks: Sequence[Image.Image | np.ndarray | Tensor] | np.ndarray | Tensor | None = None,
    boxes: Sequence[Sequence[float]] | np.ndarray | Tensor | None = None,
    color_ids: Sequence[int] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Draw objects over a photograph: masks with contours, or boxes, each with its class and score.

    Results of an "image-segmentation" pipeline fit:
    `draw_instances(image, *([r[key] for r in results] for key in ("label", "score", "mask")))`.

    Args:
        image: photograph, PIL or uint8 (H, W, 3).
        labels: class name of each object.
        scores: of each object, in [0, 1]; None leaves them out.
        masks: (H, W) of each object, nonzero inside. Smaller objects are drawn over larger ones.
        boxes: (N, 4) xyxy pixels; drawn where there are no masks, else they only place the labels.
        color_ids: number of each object's colour; class indices give the same classes the same colours in several
            pictures. None gives every object its own.
        scale: enlarges the photograph by this factor first, which keeps contours and text sharp.

    Returns:
        An RGB image of the photograph's size, times `scale`.

    Raises:
        ValueError: neither masks nor boxes, unequal numbers, or a mask of another size than the image.
    """
    picture = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    if masks is None and boxes is None:
        raise ValueError("draw_instances needs masks or boxes, got neither.")
    for name, values in (("scores", scores), ("masks", masks), ("boxes", boxes), ("color_ids", color_ids)):
        if values is not None and len(values) != len(labels):
            raise ValueError(f"{name} must hold one entry per label, got {len(values)} for {len(labels)}.")
    regions = None if masks is None else [_region(mask, picture.size, scale) for mask in masks]
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    if boxes is None:
        frames = [_frame(region) for region in regions or []]
    else:
        frames = [tuple(scale * float(side) for side in box) for box in boxes]
    colors = [object_color(index) for index in (range(len(labels)) if color_ids is None else color_ids)]
    line = max(2, round(max(picture.size) / 400))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in frames]
    order = sorted(range(len(labels)), key=lambda index: -areas[index])
    if regions is not None:
        picture = _overlay(picture, [(regions[index], colors[index]) for index in order], line)
    draw, chips = ImageDraw.Draw(picture), _LabelChips(picture.size)
    for index in order:
        if regions is None:
            draw.rectangle(frames[index], outline=colors[index], width=line)
        if regions is None or regions[index].any():
            score = "" if scores is None else f" {float(scores[index]):.2f}"
            chips.place(f"{labels[index]}{score}", frames[index], colors[index])
    chips.draw(draw)
    return picture


def object_color(index: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of an object's number, each in [0, 255].

    Hues go by the golden ratio, so that any number of neighbours differ; similar hues differ in brightness.
    """
    saturation, value = ((0.72, 0.95), (0.9, 0.78), (0.5, 1.0))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * 0.618034) % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _region(mask: Image.Image | np.ndarray | Tensor, size: tuple[int, int], scale: int) -> np.ndarray:
    region = (mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)) > 0
    if region.shape != size[::-1]:
        raise ValueError(f"masks must be (H, W) of the image, {size[::-1]}, got {region.shape}.")
    if scale == 1:
        return region
    # Interpolated, so that steps of single pixels become slopes.
    grey = Image.fromarray(region.astype(np.uint8) * 255)
    return np.asarray(grey.resize((size[0] * scale, size[1] * scale), Image.Resampling.BILINEAR)) > 127


def _frame(region: np.ndarray) -> tuple[float, ...]:
    if not region.any():
        return 0.0, 0.0, 0.0, 0.0
    return tuple(masks_to_boxes(torch.from_numpy(region)[None])[0].tolist())


def _overlay(picture: Image.Image, objects: list[tuple[np.ndarray, tuple[int, int, int]]], line: int) -> Image.Image:
    """Translucent regions, each with an opaque contour of `line` pixels inside its edge."""
    pixels = np.asarray(picture).astype(np.float32)
    for region, color in objects:
        # What lies beyond the image counts as outside, so that contours close along its border.
        outside = F.pad(torch.from_numpy(~region).float()[None, None], [line] * 4, value=1.0)
        contour = region & (F.max_pool2d(outside, 2 * line + 1, stride=1)[0, 0] > 0).numpy()
        pixels[region] = (1 - MASK_OPACITY) * pixels[region] + MASK_OPACITY * np.asarray(color, np.float32)
        pixels[contour] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


class _LabelChips:
    """Texts on chips of their objects' colours, at the frames' corners, within the picture and clear of each other."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.font = ImageFont.load_default(max(11, round(max(size) / 45)))
        self.pad = max(2, round(max(size) / 250))
        # All chips are equally high, whatever letters they hold.
        _, top, _, bottom = self.font.getbbox("Agp0")
        self.height = round(bottom - top) + 2 * self.pad
        self.chips: list[tuple[str, tuple[int, int, int], tuple[float, float, float]]] = []

    def place(self, text: str, frame: tuple[float, ...], color: tuple[int, int, int]) -> None:
        """Above the frame if there is room, else at the corner where it hides least of the others."""
        width = round(self.font.getlength(text)) + 2 * self.pad
        left, top, right, bottom = frame
        corners = [
            (x, y)
            for y in (top - self.height, top, bottom - self.height, bottom)
            for x in (left, right - width, (left + right - width) / 2)
        ]
        within = [
            (min(max(x, 0), max(self.size[0] - width, 0)), min(max(y, 0), max(self.size[1] - self.height, 0)))
            for x, y in corners
        ]
        x, y = min(within, key=lambda corner: self._hidden(corner, width))
        self.chips.append((text, color, (x, y, width)))

    def draw(self, draw: ImageDraw.ImageDraw) -> None:
        """All chips, in the order in which they were placed."""
        for text, color, (x, y, width) in self.chips:
            draw.rounded_rectangle((x, y, x + width, y + self.height), radius=self.pad, fill=color)
            red, green, blue = color
            dark = 0.299 * red + 0.587 * green + 0.114 * blue > 140
            middle = (x + self.pad, y + self.height / 2)
            draw.text(middle, text, font=self.font, anchor="lm", fill=INK if dark else "white")

    def _hidden(self, corner: tuple[float, float], width: float) -> float:
        """Pixels of other chips below a chip at a place."""
        x, y = corner
        return sum(
            max(0.0, min(x + width, left + other) - max(x, left)) * max(0.0, self.height - abs(y - top))
            for _, _, (left, top, other) in self.chips
        )
