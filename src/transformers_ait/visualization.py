"""Depth as pictures: colour maps with invalid pixels in grey, and a figure of photographs, depth, truth and error."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

DEPTH_CMAP = "magma_r"  # near is light, far is dark
ERROR_CMAP = "PuBu"  # another hue than depth, so the two scales are not confused
INVALID_GREY = 190

_INK, _MUTED = "#1f2328", "#656d76"
_DPI = 160
# Inches.
_TILE_WIDTH, _GAP, _MARGIN, _HEADING, _TITLE, _BAR_STRIP, _BAR_HEIGHT = 3.0, 0.07, 0.14, 0.28, 0.25, 0.52, 0.09
_CORNER = 0.06


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
    panel = _Panel(tiles, [row.title for row in rows], 4 if has_truth else 2)
    panel.color_bar(1, 2 if has_truth else 1, near, far, DEPTH_CMAP, "depth in metres")
    if has_truth:
        panel.color_bar(3, 3, 0.0, error_limit, ERROR_CMAP, "absolute error in metres")
    if has_holes:
        panel.legend_of_holes()
    picture = panel.render()
    if path is not None:
        picture.save(path)
    return picture


class _Panel:
    """Tiles placed in inches on one matplotlib figure, drawn without pyplot's global state."""

    def __init__(self, tiles: list[list[np.ndarray | None]], titles: list[str | None], columns: int):
        heights = [_TILE_WIDTH * row[0].shape[0] / row[0].shape[1] for row in tiles if row[0] is not None]
        steps = [height + (_TITLE if title else _GAP) for height, title in zip(heights, titles, strict=True)]
        self.width = 2 * _MARGIN + columns * _TILE_WIDTH + (columns - 1) * _GAP
        self.height = 2 * _MARGIN + _HEADING + sum(steps) + _BAR_STRIP
        self.figure = _matplotlib("figure").Figure((self.width, self.height), dpi=_DPI, facecolor="white")
        top = self.height - _MARGIN
        for column, heading in enumerate(("Image", "Predicted depth", "True depth", "Error")[:columns]):
            self._text(self._column(column), top - 0.4 * _HEADING, heading, size=11, color=_INK)
        top -= _HEADING
        for row, title, height, step in zip(tiles, titles, heights, steps, strict=True):
            for column, tile in enumerate(row[:columns]):
                if tile is not None:
                    self._tile(tile, self._column(column), top - height, height)
            if title:
                self._text(_MARGIN, top - height - 0.45 * _TITLE, title, size=9, color=_MUTED)
            top -= step

    def color_bar(self, first: int, last: int, low: float, high: float, cmap: str, caption: str) -> None:
        """A thin horizontal bar below the columns `first`..`last`."""
        left, right = self._column(first), self._column(last) + _TILE_WIDTH
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
        return _MARGIN + column * (_TILE_WIDTH + _GAP)

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def _tile(self, pixels: np.ndarray, left: float, bottom: float, height: float) -> None:
        axes = self._axes(left, bottom, _TILE_WIDTH, height)
        axes.patch.set_visible(False)
        shown = axes.imshow(pixels, aspect="auto", extent=(0, _TILE_WIDTH, 0, height), interpolation="antialiased")
        style = f"round,pad=0,rounding_size={_CORNER}"
        corners = _matplotlib("patches").FancyBboxPatch((0, 0), _TILE_WIDTH, height, style, transform=axes.transData)
        shown.set_clip_path(corners)

    def _text(self, x: float, y: float, text: str, size: float, color: str, **kwargs: Any) -> None:
        self.figure.text(
            x / self.width, y / self.height, text, fontsize=size, color=color, verticalalignment="center", **kwargs
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
