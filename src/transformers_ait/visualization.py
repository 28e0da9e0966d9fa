"""Pictures: dense maps of every kind in colours, figures of them beside photographs, and objects over photographs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from .map_kinds_ait import MapKind
from .visualization_colors import (
    DEPTH_CMAP,
    ERROR_CMAP,
    ClassNames,
    error_limit,
    limits_of,
    map_error,
    map_kind,
    native_array,
    paint,
    paint_amounts,
    valid_pixels,
)
from .visualization_colors import INVALID_GREY as INVALID_GREY
from .visualization_colors import class_palette as class_palette
from .visualization_objects import MASK_OPACITY as MASK_OPACITY
from .visualization_objects import draw_instances as draw_instances
from .visualization_panel import BAR_STRIP, TILE_WIDTH, MapStyle, Panel, error_legend, fitting_width


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


@dataclass
class PanelRow:
    """One row of `dense_panel`.

    Args:
        image: photograph, PIL or uint8 (H, W, 3).
        prediction: predicted map, in the native form of its kind: (h, w), or (c, h, w) for normals and values; of
            classes the ids, not the scores.
        truth: true native map of the same size. None leaves truth and error empty.
        title: caption below the row.
    """

    image: Image.Image | np.ndarray
    prediction: Tensor | np.ndarray
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
    kind = map_kind("depth")
    values = native_array(depth, kind, "depth")
    low, high = limits_of([values], kind, min_depth, max_depth)
    if low > high:
        raise ValueError(f"min_depth must not exceed max_depth, got {low} and {high} metres.")
    return paint_amounts(values, valid_pixels(values, kind), (low, high), cmap)


def colorize_map(
    values: Tensor | np.ndarray,
    kind: MapKind | str,
    class_names: ClassNames | None = None,
    low: float | None = None,
    high: float | None = None,
) -> np.ndarray:
    """Colour a native map of any kind; pixels without a value become neutral grey.

    - depth: as `colorize_depth`.
    - normals: the usual picture of normal maps. Red, green and blue are (1 + x) / 2, (1 - y) / 2 and (1 - z) / 2 of the
      unit vector, whose axes are the camera's (x right, y down, z ahead). A surface that faces the camera (z = -1) is
      lilac, the floor green, the ceiling purple; what faces right is reddish, what faces left turquoise.
    - classes: a colour per id, the same in every picture; walls, floors and ceilings are pale (see `class_palette`).
    - values: a sequential colour map of the value, of the vector's length where there is more than one channel.

    Args:
        values: (H, W) metres, (3, H, W) vectors, (H, W) integer ids, or (C, H, W) values.
        kind: a `MapKind` or its name.
        class_names: of the ids, as a sequence or as `id2label`.
        low: of depth and values, what gets the first colour; default the smallest. Give both limits to compare maps.
        high: what gets the last colour; default the largest.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no such kind, a shape that is not the kind's, class ids that are no integers, or low > high.
    """
    kind = map_kind(kind)
    array = native_array(values, kind, kind.name)
    limits = limits_of([array], kind, low, high)
    if limits[0] > limits[1]:
        raise ValueError(f"low must not exceed high, got {limits[0]} and {limits[1]}.")
    return paint(array, kind, limits, class_names)


def depth_panel(
    rows: Sequence[DepthPanelRow],
    path: str | Path | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    max_error: float | None = None,
) -> Image.Image:
    """`dense_panel` of depth.

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
    _check_rows(rows, DepthPanelRow)
    generic = [PanelRow(row.image, row.depth, row.truth, row.title) for row in rows]
    return dense_panel(generic, "depth", path, low=min_depth, high=max_depth, max_error=max_error)


def dense_panel(
    rows: Sequence[PanelRow],
    kind: MapKind | str,
    path: str | Path | None = None,
    name: str | None = None,
    class_names: ClassNames | None = None,
    low: float | None = None,
    high: float | None = None,
    max_error: float | None = None,
) -> Image.Image:
    """One figure of photograph, predicted map, true map and error per row, with colour bars or legends.

    All rows share one scale of values and one of errors: metres for depth, degrees for normals, right or wrong for
    classes, the absolute difference for values. Without any truth the figure has the first two columns.

    Args:
        rows: at least one row; all of one kind.
        kind: a `MapKind` or its name.
        path: also save the figure there (PNG, JPEG, ... by its suffix).
        name: what to call the maps in headings; default the kind's name.
        class_names: of class ids, as a sequence or as `id2label`.
        low: of depth and values, what gets the first colour; default the 1st percentile of all that is shown.
        high: what gets the last colour; default the 99th percentile.
        max_error: error of the strongest colour; default the 98th percentile of the errors.

    Returns:
        The figure as an RGB image.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: a row is no `PanelRow`.
        ValueError: no rows, no such kind, or a map of another shape than its kind's or than its truth.
    """
    _check_rows(rows, PanelRow)
    kind = map_kind(kind)
    name = _heading(name or kind.name, kind)
    pairs = [(native_array(row.prediction, kind, name), _truth(row, kind, name)) for row in rows]
    errors = [None if truth is None else map_error(prediction, truth, kind) for prediction, truth in pairs]
    known = [error for error in errors if error is not None]
    style = MapStyle.of([x for pair in pairs for x in pair if x is not None], kind, class_names, low, high)
    limit = error_limit(known) if max_error is None else max_error
    tiles = [
        [
            _pixels(row.image),
            style.paint(prediction),
            None if truth is None else style.paint(truth),
            None if error is None else paint_amounts(error, np.isfinite(error), (0.0, limit), ERROR_CMAP),
        ]
        for row, (prediction, truth), error in zip(rows, pairs, errors, strict=True)
    ]
    headings = ["Image", f"Predicted {name}", f"True {name}", "Error"][: 4 if known else 2]
    last = 2 if known else 1
    strip = max(BAR_STRIP, style.swatch_strip(last * TILE_WIDTH))
    panel = Panel(tiles, [row.title for row in rows], [headings], TILE_WIDTH, strip)
    style.legend(panel, 1, last, name)
    if known:
        error_legend(panel, kind, limit)
    if style.has_holes:
        panel.legend_of_holes()
    return _saved(panel.render(), path)


def task_panel(
    image: Image.Image | np.ndarray,
    maps: Mapping[str, tuple[Tensor | np.ndarray, MapKind | str, ClassNames | None]],
    truths: Mapping[str, Tensor | np.ndarray] | None = None,
    objects: Image.Image | None = None,
    true_objects: Image.Image | None = None,
    path: str | Path | None = None,
) -> Image.Image:
    """One photograph in all its tasks: predicted maps beside it, true ones below, colour bars and legends.

    As wide as a `depth_panel` with all four columns. A task's prediction and truth share their scale.

    Args:
        image: photograph, PIL or uint8 (H, W, 3).
        maps: per task its predicted map, kind and class names (None for what has no classes); see `colorize_map`.
        truths: true maps of some of the tasks, of their predictions' sizes; None leaves out the second row.
        objects: predicted objects as `draw_instances` draws them, for a last column.
        true_objects: true objects likewise.
        path: also save the figure there (PNG, JPEG, ... by its suffix).

    Returns:
        The figure as an RGB image.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: nothing to show, truths of other tasks, or a map of another shape than its kind's or its truth.
    """
    truths = truths or {}
    if not maps and objects is None:
        raise ValueError("maps is empty; give the map of at least one task, or objects.")
    if truths.keys() - maps.keys():
        raise ValueError(f"truths must be of the tasks of maps, {list(maps)}, got {list(truths)}.")
    styles: dict[str, MapStyle] = {}
    tiles: list[list[np.ndarray | None]] = [[_pixels(image)], [None]]
    for task, (prediction, kind_or_name, class_names) in maps.items():
        kind = map_kind(kind_or_name)
        pair = native_array(prediction, kind, task), _truth(PanelRow(image, prediction, truths.get(task)), kind, task)
        styles[task] = MapStyle.of([x for x in pair if x is not None], kind, class_names)
        for row, values in zip(tiles, pair, strict=True):
            row.append(None if values is None else styles[task].paint(values))
    if objects is not None:
        for row, picture in zip(tiles, (objects, true_objects), strict=True):
            row.append(None if picture is None else _pixels(picture))
    names = [_heading(task, style.kind) for task, style in styles.items()] + ["objects"] * (objects is not None)
    headings = [["Photograph", *(name.capitalize() for name in names)]]
    if any(tile is not None for tile in tiles[1]):
        headings.append(["", *("" if x is None else f"True {y}" for x, y in zip(tiles[1][1:], names, strict=True))])
    return _saved(_task_figure(tiles[: len(headings)], headings, styles), path)


def _task_figure(
    tiles: list[list[np.ndarray | None]], headings: list[list[str]], styles: Mapping[str, MapStyle]
) -> Image.Image:
    """Figure of `task_panel`: bars below their columns, and below them the classes of each task in rows."""
    assert tiles[0][0] is not None
    height, width, _ = tiles[0][0].shape
    columns = len(headings[0])
    bars = BAR_STRIP if any(style.kind.colors != "categories" or style.has_holes for style in styles.values()) else 0.0
    drops = bars + np.cumsum([0.06, *(style.swatch_strip(4 * TILE_WIDTH) for style in styles.values())])
    tile_width = fitting_width(columns, len(tiles), width / height)
    panel = Panel(tiles, [None] * len(tiles), headings, tile_width, float(drops[-1]))
    for column, (task, style) in enumerate(styles.items(), start=1):
        if style.kind.colors == "categories":
            style.legend(panel, 0, columns - 1, task, drops[column - 1])
        else:
            style.legend(panel, column, column, task)
    if any(style.has_holes for style in styles.values()):
        panel.legend_of_holes()
    return panel.render()


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
    pixels = [[_pixels(tile) for tile in row] for row in tiles]
    return Panel(pixels, titles or [None] * len(tiles), [headings], fitting_width(len(headings)), strip=0).render()


def _check_rows(rows: Sequence[DepthPanelRow] | Sequence[PanelRow], kind: type) -> None:
    if not rows:
        raise ValueError(f"rows is empty; give at least one {kind.__name__}.")
    for index, row in enumerate(rows):
        if not isinstance(row, kind):
            raise TypeError(f"rows[{index}] must be a {kind.__name__}, got {type(row).__name__}.")


def _truth(row: PanelRow, kind: MapKind, name: str) -> np.ndarray | None:
    if row.truth is None:
        return None
    truth = native_array(row.truth, kind, "truth")
    if truth.shape != native_array(row.prediction, kind, name).shape:
        raise ValueError(f"truth must have the size of {name}, got {truth.shape} and {tuple(row.prediction.shape)}.")
    return truth


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)


def _heading(task: str, kind: MapKind) -> str:
    """A task's name as a heading; "semantic" alone would not say what of."""
    words = task.replace("_", " ")
    return words if kind.colors != "categories" or "class" in words else f"{words} classes"


def _saved(picture: Image.Image, path: str | Path | None) -> Image.Image:
    if path is not None:
        picture.save(path)
    return picture
