"""Procedural textures of the synthetic rooms: functions from surface coordinates to a mixing weight."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .rooms_furniture import Material

Field = np.ndarray

TABLE_SIZE = 256


@lru_cache(maxsize=1)
def _noise_table() -> Field:
    """(256, 256) tileable fractal noise with mean 0.5, in [0, 1]."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(TABLE_SIZE) * TABLE_SIZE] * 2))
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.standard_normal((TABLE_SIZE, TABLE_SIZE))) / frequency**1.1
    spectrum[0, 0] = 0.0
    values = np.fft.ifft2(spectrum).real
    return np.clip(0.5 + values / (5.0 * values.std()), 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _random_table() -> Field:
    """(256, 256) independent uniform numbers."""
    return np.random.default_rng(1).random((TABLE_SIZE, TABLE_SIZE), dtype=np.float32)


def _lookup(table: Field, u: Field, v: Field) -> Field:
    """Entry of a tileable table at integer or real coordinates (rounded down)."""
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    return table[row & (TABLE_SIZE - 1), column & (TABLE_SIZE - 1)]


def _noise(u: Field, v: Field) -> Field:
    """Fractal noise; the table spans one unit."""
    return _lookup(_noise_table(), u * TABLE_SIZE, v * TABLE_SIZE)


def _wave(u: Field, sharpness: float) -> Field:
    """Square-like wave of period 1 in [0, 1]."""
    return np.clip(0.5 + sharpness * np.sin(2 * np.pi * u), 0, 1)


def _grid_lines(u: Field, v: Field, width: float) -> Field:
    """1 on the lines of the unit grid, 0 inside its cells."""
    du, dv = np.abs(u - np.rint(u)), np.abs(v - np.rint(v))
    return (np.minimum(du, dv) < width / 2).astype(np.float32)


def _plain(u: Field, v: Field) -> Field:
    return np.zeros_like(u)


def _mottled(u: Field, v: Field) -> Field:
    return _noise(u, v)


def _fabric(u: Field, v: Field) -> Field:
    return 0.7 * _lookup(_random_table(), u * 24, v * 24) + 0.3 * _noise(u * 0.5, v * 0.5)


def _stripes(u: Field, v: Field) -> Field:
    return _wave(u, 4.0)


def _checker(u: Field, v: Field) -> Field:
    return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)


def _dots(u: Field, v: Field) -> Field:
    du, dv = u - np.rint(u), v - np.rint(v)
    return (du * du + dv * dv < 0.06).astype(np.float32)


def _tiles(u: Field, v: Field) -> Field:
    tone = 0.35 * _lookup(_random_table(), u, v)
    return np.maximum(tone, _grid_lines(u, v, 0.05))


def _bricks(u: Field, v: Field) -> Field:
    row = np.floor(v * 2)
    shifted = u + 0.5 * (row % 2)
    tone = 0.5 * _lookup(_random_table(), shifted, row)
    return np.maximum(tone, _grid_lines(shifted, v * 2, 0.1))


def _wood(u: Field, v: Field) -> Field:
    plank = np.floor(v)
    shifted = u * 0.15 + plank * 0.37
    tone = 0.5 * _lookup(_random_table(), np.floor(shifted), plank) + 0.6 * _noise(shifted * 0.5, v * 0.9)
    seam = np.abs(v - np.rint(v)) < 0.02
    return np.where(seam, 1.0, np.clip(tone, 0, 1)).astype(np.float32)


def _curtain(u: Field, v: Field) -> Field:
    return 0.5 + 0.5 * np.sin(2 * np.pi * (u + 0.5 * _noise(u * 0.02, v * 0.01)))


def _art(u: Field, v: Field) -> Field:
    return np.floor(_noise(u * 0.31 + 0.2, v * 0.31) * 9 - 2) / 4


def _sky(u: Field, v: Field) -> Field:
    return np.clip(v + 0.5, 0, 1) * (0.4 + 0.6 * _noise(u * 0.2, v * 0.2))


PATTERNS: dict[str, Callable[[Field, Field], Field]] = {
    "plain": _plain,
    "noise": _mottled,
    "fabric": _fabric,
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "tiles": _tiles,
    "bricks": _bricks,
    "wood": _wood,
    "curtain": _curtain,
    "art": _art,
    "sky": _sky,
}
FINE_PATTERNS = ("stripes", "checker", "dots", "tiles", "bricks", "fabric", "wood", "curtain")


def albedo(material: Material, u: Field, v: Field, depth: Field, focal: float) -> Field:
    """Surface colour; patterns fade to their mean where a period falls below a few pixels.

    Args:
        material: the surface's appearance.
        u: (N,) first surface coordinate, metres.
        v: (N,) second surface coordinate, metres.
        depth: (N,) distance from the camera, metres.
        focal: focal length in pixels.

    Returns:
        (3, N) linear RGB.
    """
    weight = PATTERNS[material.pattern](u / np.float32(material.scale), v / np.float32(material.scale))
    if material.pattern in FINE_PATTERNS:
        pixels_per_period = np.float32(material.scale * focal) / depth
        keep = np.clip(pixels_per_period * np.float32(0.25) - np.float32(0.5), 0, 1)
        mean = weight.mean(dtype=np.float32)
        weight = mean + (weight - mean) * keep
    color = np.array(material.color, np.float32)[:, None]
    change = np.array(material.second, np.float32)[:, None] - color
    return np.clip(color + change * weight, 0, 1)
