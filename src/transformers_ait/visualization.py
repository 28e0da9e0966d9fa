"""Pictures: colour maps of depth with invalid pixels in grey, figures of depth, and objects drawn over photographs."""

import colorsys
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import masks_to_boxes

DEPTH_CMAP = "magma_r"  # near is light, far is dark
ERROR_CMAP = "PuBu"  # another hue than depth, so the two scales are not confused
INVALID_GREY = 190
MASK_OPACITY = 0.45

_INK, _MUTED = "#1f2328", "#656d76"
_DPI = 160
# Inches.
_TILE_WIDTH, _GAP, _MARGIN, _HEADING, _TITLE, _BAR_STRIP, _BAR_HEIGHT = 3.0, 0.07, 0.14, 0.28, 0.25, 0.52, 0.09
_CORNER = 0.06
_DEPTH_HEADINGS = ("Image", "Predicted depth", "True depth", "Error")


@dataclass
class DepthPanelRow:
    """One row of `depth_panel`.

    Args:
        image: photograph, PIL or uint8 (H, W, 3).
        depth: predicted (h, w) metres; 0 = invalid.
        truth: true (h, w) metres, 0 = invalid; same size as `depth`. None leaves truth and error empty.
        title: caption below the row.
    """

    image: Image.Image | np.ndarray
    depth: Tensor | np.ndarray
    truth: Tensor | np.ndarray | None = None
    title: str | None = None


def colorize_depth(
    depth: Tensor | np.ndarray,
    min_depth: float | None = None,
    max_depth: float | None = None,
    cmap: str = DEPTH_CMAP,
) -> np.ndarray:
    """Colour a depth map; pixels that are 0, negative or not finite become neutral grey.

    Args:
        depth: (H, W) metres.
        min_depth: metres of the first colour; default the smallest valid depth. Give both limits to compare maps.
        max_depth: metres of the last colour; default the largest valid depth.
        cmap: name of a matplotlib colour map.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: `depth` is not two-dimensional, or min_depth > max_depth.
    """
    values = _as_map(depth, "depth")
    valid = _valid(values)
    smallest, largest = (values[valid].min(), values[valid].max()) if valid.any() else (0.0, 1.0)
    low = float(smallest) if min_depth is None else min_depth
    high = float(largest) if max_depth is None else max_depth
    if low > high:
        raise ValueError(f"min_depth must not exceed max_depth, got {low} and {high} metres.")
    return _colors(values, valid, low, high, cmap)


def depth_panel(
    rows: Sequence[DepthPanelRow],
    path: str | Path | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    max_error: float | None = None,
) -> Image.Image:
    """One figure of photograph, predicted depth, true depth and absolute error per row, with colour bars in metres.

    All rows share one depth scale and one error scale. Without any truth the figure has the first two columns.

    Args:
        rows: at least one row.
        path: also save the figure there (PNG, JPEG, ... by its suffix).
        min_depth: metres of the first colour; default the 1st percentile of all depth shown.
        max_depth: metres of the last colour; default the 99th percentile.
        max_error: metres of the strongest error colour; default the 98th percentile of the errors.

    Returns:
        The figure as an RGB image.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: a row is no `DepthPanelRow`.
        ValueError: no rows, or a truth of another size than its depth.
    """
    if not rows:
        raise ValueError("rows is empty; give at least one DepthPanelRow.")
    for index, row in enumerate(rows):
        if not isinstance(row, DepthPanelRow):
            raise TypeError(f"rows[{index}] must be a DepthPanelRow, got {type(row).__name__}.")
    maps = [(_as_map(row.depth, "depth"), _truth_map(row)) for row in rows]
    has_truth = any(truth is not None for _, truth in maps)
    errors = [None if truth is None else _absolute_error(depth, truth) for depth, truth in maps]
    near, far = _depth_range([x for pair in maps for x in pair if x is not None])
    near, far = near if min_depth is None else min_depth, far if max_depth is None else max_depth
    error_limit = _error_range([x for x in errors if x is not None]) if max_error is None else max_error

    tiles = [
        [
            np.asarray(row.image.convert("RGB") if isinstance(row.image, Image.Image) else row.image),
            _colors(depth, _valid(depth), near, far, DEPTH_CMAP),
            None if truth is None else _colors(truth, _valid(truth), near, far, DEPTH_CMAP),
            None if error is None else _colors(error, np.isfinite(error), 0.0, error_limit, ERROR_CMAP),
        ]
        for row, (depth, truth), error in zip(rows, maps, errors, strict=True)
    ]
    has_holes = any(not _valid(x).all() for pair in maps for x in pair if x is not None)
    headings = _DEPTH_HEADINGS if has_truth else _DEPTH_HEADINGS[:2]
    panel = _Panel(tiles, [row.title for row in rows], headings, _TILE_WIDTH, _BAR_STRIP)
    panel.color_bar(1, 2 if has_truth else 1, near, far, DEPTH_CMAP, "depth in metres")
    if has_truth:
        panel.color_bar(3, 3, 0.0, error_limit, ERROR_CMAP, "absolute error in metres")
    if has_holes:
        panel.legend_of_holes()
    picture = panel.render()
    if path is not None:
        picture.save(path)
    return picture


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
    colors = [_object_color(index) for index in (range(len(labels)) if color_ids is None else color_ids)]
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


def picture_panel(
    tiles: Sequence[Sequence[Image.Image]], headings: Sequence[str], titles: Sequence[str | None] | None = None
) -> Image.Image:
    """Rows of pictures under headings, in the style of `depth_panel` and as wide as one with all four columns.

    Args:
        tiles: rows of pictures of equal size, one per heading; at least one row.
        headings: of the columns.
        titles: caption below each row; None leaves all of them out.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no rows, or a row of another length than `headings`.
    """
    if not tiles or any(len(row) != len(headings) for row in tiles):
        raise ValueError(f"tiles must be rows of {len(headings)} pictures, got {[len(row) for row in tiles]}.")
    columns = len(_DEPTH_HEADINGS)
    tile_width = (columns * _TILE_WIDTH + (columns - len(headings)) * _GAP) / len(headings)
    pixels: list[list[np.ndarray | None]] = [[np.asarray(tile.convert("RGB")) for tile in row] for row in tiles]
    return _Panel(pixels, titles or [None] * len(tiles), headings, tile_width, strip=0).render()


class _Panel:
    """Tiles placed in inches on one matplotlib figure, drawn without pyplot's global state.

    `strip` is the height left below the rows, for colour bars.
    """

    def __init__(
        self,
        tiles: list[list[np.ndarray | None]],
        titles: Sequence[str | None],
        headings: Sequence[str],
        tile_width: float,
        strip: float,
    ):
        self.tile_width = tile_width
        heights = [tile_width * row[0].shape[0] / row[0].shape[1] for row in tiles if row[0] is not None]
        steps = [height + (_TITLE if title else _GAP) for height, title in zip(heights, titles, strict=True)]
        self.width = 2 * _MARGIN + len(headings) * tile_width + (len(headings) - 1) * _GAP
        self.height = 2 * _MARGIN + _HEADING + sum(steps) + strip
        self.figure = _matplotlib("figure").Figure((self.width, self.height), dpi=_DPI, facecolor="white")
        top = self.height - _MARGIN
        for column, heading in enumerate(headings):
            self._text(self._column(column), top - 0.4 * _HEADING, heading, size=11, color=_INK)
        top -= _HEADING
        for row, title, height, step in zip(tiles, titles, heights, steps, strict=True):
            for column, tile in enumerate(row[: len(headings)]):
                if tile is not None:
                    self._tile(tile, self._column(column), top - height, height)
            if title:
                self._text(_MARGIN, top - height - 0.45 * _TITLE, title, size=9, color=_MUTED)
            top -= step

    def color_bar(self, first: int, last: int, low: float, high: float, cmap: str, caption: str) -> None:
        """A thin horizontal bar below the columns `first`..`last`."""
        left, right = self._column(first), self._column(last) + self.tile_width
        bottom = _MARGIN + _BAR_STRIP - 0.05 - _BAR_HEIGHT
        axes = self._axes(left, bottom, right - left, _BAR_HEIGHT)
        bar = self.figure.colorbar(_scale(low, high, cmap), cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        axes.tick_params(length=2.5, width=0.6, pad=2, labelsize=8.5, color=_MUTED, labelcolor=_INK)
        axes.locator_params(axis="x", nbins=8 if last > first else 6)
        for value, tick in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
            # Labels at the ends stay within the bar, clear of the next bar's.
            share = (value - low) / max(high - low, 1e-6)
            tick.set_horizontalalignment("left" if share < 0.02 else "right" if share > 0.98 else "center")
        axes.set_xlabel(caption, fontsize=8.5, color=_MUTED, labelpad=2)

    def legend_of_holes(self) -> None:
        """A grey swatch below the first column."""
        bottom = _MARGIN + _BAR_STRIP - 0.05 - _BAR_HEIGHT
        axes = self._axes(_MARGIN, bottom - 0.02, 0.18, 0.13)
        axes.set_facecolor((INVALID_GREY / 255,) * 3)
        self._text(_MARGIN + 0.25, bottom + 0.045, "no measurement", size=8.5, color=_MUTED)

    def render(self) -> Image.Image:
        buffer = BytesIO()
        _matplotlib("backends.backend_agg").FigureCanvasAgg(self.figure).print_png(buffer)
        return Image.open(buffer).convert("RGB")

    def _column(self, column: int) -> float:
        return _MARGIN + column * (self.tile_width + _GAP)

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def _tile(self, pixels: np.ndarray, left: float, bottom: float, height: float) -> None:
        axes = self._axes(left, bottom, self.tile_width, height)
        axes.patch.set_visible(False)
        shown = axes.imshow(pixels, aspect="auto", extent=(0, self.tile_width, 0, height), interpolation="antialiased")
        style = f"round,pad=0,rounding_size={_CORNER}"
        corners = _matplotlib("patches").FancyBboxPatch(
            (0, 0), self.tile_width, height, style, transform=axes.transData
        )
        shown.set_clip_path(corners)

    def _text(self, x: float, y: float, text: str, size: float, color: str, **kwargs: Any) -> None:
        self.figure.text(
            x / self.width, y / self.height, text, fontsize=size, color=color, verticalalignment="center", **kwargs
        )


def _object_color(index: int) -> tuple[int, int, int]:
    """Hues by the golden ratio, so that any number of neighbours differ; similar hues differ in brightness."""
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
            draw.text(middle, text, font=self.font, anchor="lm", fill=_INK if dark else "white")

    def _hidden(self, corner: tuple[float, float], width: float) -> float:
        """Pixels of other chips below a chip at a place."""
        x, y = corner
        return sum(
            max(0.0, min(x + width, left + other) - max(x, left)) * max(0.0, self.height - abs(y - top))
            for _, _, (left, top, other) in self.chips
        )


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ImportError(
            "Pictures of depth need matplotlib, which is optional: pip install 'transformers_ait[demo]'."
        ) from error


def _as_map(depth: Tensor | np.ndarray, name: str) -> np.ndarray:
    values = depth.detach().float().cpu().numpy() if isinstance(depth, Tensor) else np.asarray(depth, np.float32)
    if values.ndim != 2:
        raise ValueError(f"{name} must be one (H, W) map, got shape {values.shape}.")
    return values


def _truth_map(row: DepthPanelRow) -> np.ndarray | None:
    if row.truth is None:
        return None
    truth = _as_map(row.truth, "truth")
    if truth.shape != tuple(row.depth.shape):
        raise ValueError(f"truth must have the size of depth, got {truth.shape} and {tuple(row.depth.shape)}.")
    return truth


def _absolute_error(depth: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.where(_valid(depth) & _valid(truth), np.abs(depth - truth), np.nan)


def _valid(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)


def _depth_range(maps: list[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([depth[_valid(depth)] for depth in maps])
    return (float(np.percentile(values, 1)), float(np.percentile(values, 99))) if values.size else (0.0, 1.0)


def _error_range(errors: list[np.ndarray]) -> float:
    values = np.concatenate([error[np.isfinite(error)] for error in errors]) if errors else np.empty(0)
    # Where nothing is wrong, any range shows it.
    return (float(np.percentile(values, 98)) if values.size else 0.0) or 1.0


def _colors(values: np.ndarray, valid: np.ndarray, low: float, high: float, cmap: str) -> np.ndarray:
    mappable = _scale(low, high, cmap)
    rgb = mappable.to_rgba(np.where(valid, values, low), bytes=True)[..., :3]
    return np.where(valid[..., None], rgb, np.uint8(INVALID_GREY))


def _scale(low: float, high: float, cmap: str) -> Any:
    """One mapping of metres to colours, for the pixels and for their colour bar."""
    return _matplotlib("cm").ScalarMappable(_matplotlib("colors").Normalize(low, high, clip=True), cmap)
