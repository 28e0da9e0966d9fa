"""Layout of figures: tiles in rows under headings, with colour bars and legends below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from .map_kinds_ait import MapKind
from .visualization_colors import (
    ERROR_CMAP,
    INK,
    INVALID_GREY,
    MUTED,
    ClassNames,
    class_palette,
    color_map,
    color_scale,
    limits_of,
    matplotlib_module,
    names_by_id,
    normal_sphere,
    paint,
    valid_pixels,
)

_DPI = 160
# Inches.
TILE_WIDTH, BAR_STRIP = 3.0, 0.52
_GAP, _MARGIN, _HEADING, _TITLE, _BAR_HEIGHT = 0.07, 0.14, 0.28, 0.25, 0.09
_BETWEEN = _GAP + _HEADING
_CORNER = 0.06
_MAX_SWATCHES = 40
# What colour bars measure, by kind: values and errors.
_UNITS = {"depth": ("depth in metres", "absolute error in metres"), "normals": ("", "angle in degrees")}
_SWATCH, _SWATCH_ROW = 0.13, 0.19


def fitting_width(columns: int, rows: int = 1, ratio: float = 1.0) -> float:
    """Width of a tile where so many columns are as wide as four of `TILE_WIDTH`.

    Args:
        columns: number of columns.
        rows: that the first picture is high, with headings above each.
        ratio: width of the pictures by their height.
    """
    return (4 * TILE_WIDTH + (4 - columns) * _GAP - (rows - 1) * _BETWEEN * ratio) / (columns + rows - 1)


def swatch_strip(names: Sequence[str], width: float) -> float:
    """Height of the strip that `Panel.swatches` fill below columns of this width."""
    return 0.06 + _SWATCH_ROW * (_swatch_places(names, width)[-1][1] + 1)


class Panel:
    """Tiles placed in inches on one matplotlib figure, drawn without pyplot's global state.

    Args:
        tiles: rows of pictures (H, W, 3), of one shape in a row; None leaves a place empty.
        titles: caption below each row, or None.
        headings: of the columns, above each of the first rows.
        tile_width: of each column; where there are several rows of headings, the first column's one picture is as high
            as these rows together.
        strip: height left below the rows, for colour bars and legends.
    """

    def __init__(
        self,
        tiles: Sequence[Sequence[np.ndarray | None]],
        titles: Sequence[str | None],
        headings: Sequence[Sequence[str]],
        tile_width: float,
        strip: float,
    ):
        self.tile_width, self.strip = tile_width, strip
        shapes = [next(tile for tile in row if tile is not None).shape for row in tiles]
        heights = [tile_width * height / width for height, width, _ in shapes]
        steps = [height + (_TITLE if title else _GAP) for height, title in zip(heights, titles, strict=True)]
        tall = sum(heights[1 : len(headings)]) + (len(headings) - 1) * _BETWEEN
        self.extra = tall * shapes[0][1] / shapes[0][0]
        columns = len(headings[0])
        self.width = 2 * _MARGIN + columns * tile_width + (columns - 1) * _GAP + self.extra
        self.height = 2 * _MARGIN + _HEADING * len(headings) + sum(steps) + strip
        self.figure = matplotlib_module("figure").Figure((self.width, self.height), dpi=_DPI, facecolor="white")
        top = self.height - _MARGIN
        for index, (row, title, height, step) in enumerate(zip(tiles, titles, heights, steps, strict=True)):
            if index < len(headings):
                self._headings(headings[index], top - 0.4 * _HEADING)
                top -= _HEADING
            for column, tile in enumerate(row[:columns]):
                if tile is not None:
                    wider, taller = (self.extra, tall) if index == column == 0 else (0.0, 0.0)
                    place = self._column(column), top - height - taller, tile_width + wider, height + taller
                    self._tile(tile, *place)
            if title:
                self._text(_MARGIN, top - height - 0.45 * _TITLE, title, size=9, color=MUTED)
            top -= step

    def color_bar(self, first: int, last: int, low: float, high: float, cmap: str, caption: str) -> None:
        """A thin horizontal bar below the columns `first`..`last`."""
        left, right = self._span(first, last)
        axes = self._axes(left, self._bar_bottom(), right - left, _BAR_HEIGHT)
        bar = self.figure.colorbar(color_scale(low, high, cmap), cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        axes.tick_params(length=2.5, width=0.6, pad=2, labelsize=8.5, color=MUTED, labelcolor=INK)
        axes.locator_params(axis="x", nbins=8 if last > first else 6)
        for value, tick in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
            # Labels at the ends stay within the bar, clear of the next bar's.
            share = (value - low) / max(high - low, 1e-6)
            tick.set_horizontalalignment("left" if share < 0.02 else "right" if share > 0.98 else "center")
        axes.set_xlabel(caption, fontsize=8.5, color=MUTED, labelpad=2)

    def swatches(self, first: int, last: int, entries: Sequence[tuple[str, Sequence[int]]], drop: float = 0.0) -> None:
        """Names beside squares of their colours (0 to 255), in rows below the columns `first`..`last`.

        Args:
            first: first column.
            last: last column.
            entries: names and colours.
            drop: inches between the top of the strip and the first row.
        """
        left, right = self._span(first, last)
        places = _swatch_places([name for name, _ in entries], right - left)
        for (name, color), (shift, row) in zip(entries, places, strict=True):
            x, y = left + shift, self._bar_bottom() - 0.02 - drop - row * _SWATCH_ROW
            self._axes(x, y, _SWATCH, _SWATCH).set_facecolor(np.asarray(color) / 255)
            self._text(x + _SWATCH + 0.06, y + 0.5 * _SWATCH, name, size=8.5, color=INK)

    def sphere(self, column: int) -> None:
        """The colours of directions on a ball seen by the camera, below a column."""
        side = BAR_STRIP - 0.1
        left, bottom = self._column(column), _MARGIN + self.strip - 0.05 - side
        axes = self._axes(left, bottom, side, side)
        axes.imshow(normal_sphere(4 * round(side * _DPI)), interpolation="antialiased")
        self._text(left + side + 0.09, bottom + 0.5 * side, "facing direction", size=8.5, color=MUTED)

    def legend_of_holes(self) -> None:
        """A grey swatch below the first column."""
        bottom = self._bar_bottom()
        axes = self._axes(_MARGIN, bottom - 0.02, 0.18, 0.13)
        axes.set_facecolor((INVALID_GREY / 255,) * 3)
        self._text(_MARGIN + 0.25, bottom + 0.045, "no measurement", size=8.5, color=MUTED)

    def render(self) -> Image.Image:
        """The figure as an RGB image."""
        buffer = BytesIO()
        matplotlib_module("backends.backend_agg").FigureCanvasAgg(self.figure).print_png(buffer)
        return Image.open(buffer).convert("RGB")

    def _column(self, column: int) -> float:
        return _MARGIN + column * (self.tile_width + _GAP) + (self.extra if column else 0.0)

    def _span(self, first: int, last: int) -> tuple[float, float]:
        return self._column(first), self._column(last) + self.tile_width + (0.0 if last else self.extra)

    def _headings(self, headings: Sequence[str], middle: float) -> None:
        for column, heading in enumerate(headings):
            self._text(self._column(column), middle, heading, size=11, color=INK)

    def _bar_bottom(self) -> float:
        return _MARGIN + self.strip - 0.05 - _BAR_HEIGHT

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Any:
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def _tile(self, pixels: np.ndarray, left: float, bottom: float, width: float, height: float) -> None:
        axes = self._axes(left, bottom, width, height)
        axes.patch.set_visible(False)
        shown = axes.imshow(pixels, aspect="auto", extent=(0, width, 0, height), interpolation="antialiased")
        style = f"round,pad=0,rounding_size={_CORNER}"
        corners = matplotlib_module("patches").FancyBboxPatch((0, 0), width, height, style, transform=axes.transData)
        shown.set_clip_path(corners)

    def _text(self, x: float, y: float, text: str, size: float, color: str, **kwargs: Any) -> None:
        self.figure.text(
            x / self.width, y / self.height, text, fontsize=size, color=color, verticalalignment="center", **kwargs
        )


@dataclass(frozen=True)
class MapStyle:
    """How the maps of one task look in a figure.

    Args:
        kind: of the maps.
        limits: of sequential colours.
        class_names: of ids.
        classes: ids that occur, those of the most pixels first.
        has_holes: a map has pixels without a value.
    """

    kind: MapKind
    limits: tuple[float, float]
    class_names: Mapping[int, str]
    classes: list[int]
    has_holes: bool

    @classmethod
    def of(
        cls,
        arrays: Sequence[np.ndarray],
        kind: MapKind,
        class_names: ClassNames | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> "MapStyle":
        """The style that suits some maps."""
        valid = [valid_pixels(array, kind) for array in arrays]
        classes: list[int] = []
        if kind.colors == "categories":
            known = np.concatenate([x[y] for x, y in zip(arrays, valid, strict=True)])
            ids, counts = np.unique(known, return_counts=True)
            classes = ids[np.argsort(-counts, kind="stable")].tolist()
        limits = limits_of(arrays, kind, low, high, percentiles=(1, 99))
        return cls(kind, limits, names_by_id(class_names), classes, not all(x.all() for x in valid))

    def paint(self, array: np.ndarray) -> np.ndarray:
        """Pixels of one map."""
        return paint(array, self.kind, self.limits, self.class_names)

    def swatch_strip(self, width: float) -> float:
        """Height that the legend of classes takes below columns of a width; 0 without classes."""
        return swatch_strip(self._names(), width) if self.classes else 0.0

    def legend(self, panel: Panel, first: int, last: int, name: str, drop: float = 0.0) -> None:
        """Draw the colour bar, the classes or the directions below some columns."""
        if self.kind.colors == "categories":
            palette = class_palette(self.class_names)
            colors = [palette[index % len(palette)].tolist() for index in self.classes[:_MAX_SWATCHES]]
            panel.swatches(first, last, list(zip(self._names(), colors, strict=True)), drop)
        elif self.kind.colors == "vectors":
            panel.sphere(first)
        else:
            caption = _UNITS[self.kind.name][0] if self.kind.name in _UNITS else name
            panel.color_bar(first, last, *self.limits, color_map(self.kind), caption)

    def _names(self) -> list[str]:
        return [self.class_names.get(index, f"class {index}") for index in self.classes[:_MAX_SWATCHES]]


def error_legend(panel: Panel, kind: MapKind, limit: float) -> None:
    """Draw what the colours of errors mean, below column 3; `limit` is the error of the strongest one."""
    if kind.colors == "categories":
        colors = color_scale(0.0, 1.0, ERROR_CMAP).to_rgba([0.0, 1.0], bytes=True)[:, :3].tolist()
        panel.swatches(3, 3, list(zip(("right", "wrong"), colors, strict=True)))
    else:
        panel.color_bar(3, 3, 0.0, limit, ERROR_CMAP, _UNITS.get(kind.name, ("", "absolute error"))[1])


def _swatch_places(names: Sequence[str], width: float) -> list[tuple[float, int]]:
    """Left edge and row of each entry of a legend, filled as lines of text are."""
    places: list[tuple[float, int]] = []
    left, row = 0.0, 0
    for name in names:
        # With a dot, because matplotlib measures no empty names.
        text = matplotlib_module("textpath").TextPath((0, 0), f"{name}.", size=8.5).get_extents().width / 72
        if left and left + _SWATCH + 0.06 + text > width:
            left, row = 0.0, row + 1
        places.append((left, row))
        left += _SWATCH + 0.21 + text
    return places
