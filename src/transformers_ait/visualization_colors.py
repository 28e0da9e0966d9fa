"""Colours of dense maps by their kind, errors of predicted maps, and what is drawn where nothing is known."""

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .map_kinds_ait import MAP_KINDS, MapKind

DEPTH_CMAP = "magma_r"  # near is light, far is dark
VALUES_CMAP = "viridis"
ERROR_CMAP = "PuBu"  # another hue than the maps, so the two scales are not confused
INVALID_GREY = 190
INK, MUTED = "#1f2328", "#656d76"

# Colours of right, up and towards the camera are red, green and blue; the camera's y points down and its z ahead.
NORMAL_AXES = np.array([1.0, -1.0, -1.0], dtype=np.float32)
CALM_CLASSES = {"wall": (168, 190, 219), "floor": (207, 183, 142), "ceiling": (233, 231, 219)}
PALETTE_SIZE = 255

ClassNames = Sequence[str] | Mapping[int, str]


def matplotlib_module(module: str) -> Any:
    """A module of matplotlib; ImportError names the extra that brings it."""
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise ImportError(
            "Pictures of maps need matplotlib, which is optional: pip install 'transformers_ait[demo]'."
        ) from error


def map_kind(kind: MapKind | str) -> MapKind:
    """A kind, or the one of that name.

    Raises:
        ValueError: no kind has this name.
    """
    if isinstance(kind, str) and kind not in MAP_KINDS:
        raise ValueError(f"kind must be one of {sorted(MAP_KINDS)}, got {kind!r}.")
    return MAP_KINDS[kind] if isinstance(kind, str) else kind


def native_array(values: Tensor | np.ndarray, kind: MapKind, name: str) -> np.ndarray:
    """One native map as an array: (H, W) float32 or integer ids, or (C, H, W) float32.

    Raises:
        ValueError: another shape, or class ids that are no integers.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    if kind.colors == "categories":
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} must hold integer class ids, got {array.dtype}; take the argmax of class scores.")
    else:
        # torch reads neither mirrored nor read-only arrays.
        array = np.require(array, np.float32, ["C", "W"])
    if kind.has_channels and kind.channels in (None, 1) and array.ndim == 2:
        array = array[None]
    if array.ndim != 2 + kind.has_channels or (kind.has_channels and kind.channels not in (None, array.shape[0])):
        shape = f"({kind.channels or 'C'}, H, W)" if kind.has_channels else "(H, W)"
        raise ValueError(f"{name} must be one {shape} map, got shape {np.shape(values)}.")
    return array


def valid_pixels(array: np.ndarray, kind: MapKind) -> np.ndarray:
    """Which pixels (H, W) of a native map hold a value."""
    if kind.colors == "categories":
        return array != kind.invalid
    values = torch.from_numpy(array if kind.has_channels else array[None])
    return (kind.valid(values[None])[0, 0] & values.isfinite().all(0)).numpy()


def amounts(array: np.ndarray) -> np.ndarray:
    """What a sequential colour shows (H, W): the value, or the length of the vector where there are more channels."""
    if array.ndim == 2 or len(array) == 1:
        return array.reshape(array.shape[-2:])
    return np.linalg.norm(array, axis=0)


def map_error(prediction: np.ndarray, truth: np.ndarray, kind: MapKind) -> np.ndarray:
    """Error of each pixel (H, W), NaN where either map is invalid.

    Degrees between vectors, 1 for a wrong class and 0 for the right one, else the length of the difference.
    """
    valid = valid_pixels(prediction, kind) & valid_pixels(truth, kind)
    if kind.colors == "vectors":
        error = np.rad2deg(np.arccos((_unit(prediction) * _unit(truth)).sum(0).clip(-1, 1)))
    elif kind.colors == "categories":
        error = (prediction != truth).astype(np.float32)
    else:
        with np.errstate(invalid="ignore"):
            error = np.abs(amounts(prediction - truth))
    return np.where(valid, error, np.nan)


def limits_of(
    arrays: Sequence[np.ndarray],
    kind: MapKind,
    low: float | None = None,
    high: float | None = None,
    percentiles: tuple[float, float] = (0, 100),
) -> tuple[float, float]:
    """Limits of sequential colours: the given ones, else percentiles of what is shown, or (0, 1) where nothing is."""
    values = np.concatenate([amounts(array)[valid_pixels(array, kind)] for array in arrays])
    first, last = np.percentile(values, percentiles).tolist() if values.size else (0.0, 1.0)
    return first if low is None else low, last if high is None else high


def error_limit(errors: Sequence[np.ndarray]) -> float:
    """Error of the strongest colour: the 98th percentile."""
    values = np.concatenate([error[np.isfinite(error)] for error in errors]) if errors else np.empty(0)
    # Where nothing is wrong, any range shows it.
    return (float(np.percentile(values, 98)) if values.size else 0.0) or 1.0


def color_scale(low: float, high: float, cmap: str) -> Any:
    """One mapping of values to colours, for the pixels and for their colour bar."""
    normalize = matplotlib_module("colors").Normalize(low, high, clip=True)
    return matplotlib_module("cm").ScalarMappable(normalize, cmap)


def color_map(kind: MapKind) -> str:
    """Name of the matplotlib colour map of a sequential kind."""
    return DEPTH_CMAP if kind.metric == "depth" else VALUES_CMAP


def paint(
    array: np.ndarray,
    kind: MapKind,
    limits: tuple[float, float] = (0.0, 1.0),
    class_names: ClassNames | None = None,
) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of a native map; see `visualization.colorize_map`."""
    valid = valid_pixels(array, kind)
    if kind.colors == "vectors":
        axes = np.moveaxis(_unit(np.where(valid, array, 0.0)), 0, -1) * NORMAL_AXES
        colors = ((axes + 1) * 127.5).round().astype(np.uint8)
    elif kind.colors == "categories":
        colors = class_palette(class_names)[array % PALETTE_SIZE]
    else:
        return paint_amounts(amounts(array), valid, limits, color_map(kind))
    return np.where(valid[..., None], colors, np.uint8(INVALID_GREY))


def paint_amounts(values: np.ndarray, valid: np.ndarray, limits: tuple[float, float], cmap: str) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of values (H, W) in a sequential colour map, grey where not valid."""
    rgb = color_scale(*limits, cmap).to_rgba(np.where(valid, values, limits[0]), bytes=True)[..., :3]
    return np.where(valid[..., None], rgb, np.uint8(INVALID_GREY))


def class_palette(class_names: ClassNames | None = None) -> np.ndarray:
    """Colours (255, 3) uint8 of class ids: an id has the same one in every picture, whatever occurs there.

    Classes called wall, floor or ceiling, which fill rooms, get calm colours of their own.
    """
    palette = _distinct_colors().copy()
    for index, name in names_by_id(class_names).items():
        if name.lower() in CALM_CLASSES:
            palette[index % PALETTE_SIZE] = CALM_CLASSES[name.lower()]
    return palette


def names_by_id(class_names: ClassNames | None) -> Mapping[int, str]:
    """Class names as a mapping, as `id2label` is one."""
    return class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names or ()))


def normal_sphere(size: int) -> np.ndarray:
    """Colours (size, size, 3) of the side of a ball that the camera sees, on white."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 2)
    ahead = np.sqrt((1 - x**2 - y**2).clip(0))
    sphere = paint(np.stack((x, y, -ahead)), MAP_KINDS["normals"])
    return np.where((x**2 + y**2 <= 1)[..., None], sphere, np.uint8(255))


@functools.cache
def _distinct_colors() -> np.ndarray:
    """Each colour is, in the Oklab space of perceived colour, the one farthest from all others and from the greys."""
    steps = np.linspace(0, 255, 18).round()
    colors = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(colors)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    quiet = (lab[:, 0] > 0.45) & (lab[:, 0] < 0.88) & (chroma > 0.06) & (chroma < 0.17)
    colors, lab = colors[quiet], lab[quiet]
    taken = _oklab(np.array([(INVALID_GREY,) * 3, *CALM_CLASSES.values()], dtype=np.float64))
    distance = np.linalg.norm(lab[:, None] - taken, axis=-1).min(1)
    chosen = []
    for _ in range(PALETTE_SIZE):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return colors[chosen].astype(np.uint8)


def linear_light(shares: np.ndarray) -> np.ndarray:
    """Linear intensities in [0, 1] of sRGB values in [0, 1]."""
    return np.where(shares > 0.04045, ((shares + 0.055) / 1.055) ** 2.4, shares / 12.92)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Lightness and two chroma axes (N, 3) of sRGB colours (N, 3) in [0, 255] (Ottosson 2020)."""
    linear = linear_light(rgb / 255)
    cones = linear @ np.array([[0.41222, 0.21190, 0.08830], [0.53633, 0.68070, 0.28172], [0.05145, 0.10740, 0.62998]])
    return np.cbrt(cones) @ np.array(
        [[0.21045, 1.97800, 0.02590], [0.79362, -2.42859, 0.78277], [-0.00407, 0.45059, -0.80868]]
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=0).clip(1e-6)
