"""Cameras of the synthetic rooms: from radiance to an 8-bit picture, and from exact depth to what a sensor measures."""

import math

import numpy as np

Array = np.ndarray

BASELINE = 0.075
"""Metres between the depth sensor's projector and its camera."""

_LEVELS = 4096


def _blur(channels: Array, strength: float) -> Array:
    """Separable (strength, 1 - 2 strength, strength) blur of (3, H, W), edges repeated."""
    side, middle = np.float32(strength), np.float32(1 - 2 * strength)
    padded = np.pad(channels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = middle * padded[:, 1:-1] + side * (padded[:, :-2] + padded[:, 2:])
    return middle * rows[..., 1:-1] + side * (rows[..., :-2] + rows[..., 2:])


def _tone_curve(gamma: float) -> Array:
    """(4096,) 8-bit values of exposures 0..2: linear in the shadows, a soft shoulder in the lights."""
    exposure = np.linspace(0, 2, _LEVELS)
    shoulder = np.where(exposure < 0.6, exposure, 0.6 + 0.4 * np.tanh((exposure - 0.6) / 0.4))
    return 255 * shoulder ** (1 / gamma)


def develop_image(radiance: Array, rng: np.random.Generator) -> Array:
    """Turn radiance into the picture of a consumer camera.

    Automatic exposure, slight blur, vignetting, white balance, tone curve and noise vary from picture to picture.

    Args:
        radiance: (3, H, W) float32 linear RGB, 0 or more.
        rng: source of the camera's properties and of its noise.

    Returns:
        (H, W, 3) uint8.
    """
    _, height, width = radiance.shape
    luminance = radiance.mean(0)
    level = 0.5 * float(np.median(luminance)) + 0.5 * float(np.minimum(luminance, 4 * np.median(luminance)).mean())
    gain = rng.uniform(0.2, 0.42) / max(level, 1e-4)
    balance = np.array([1 + rng.normal(0, 0.06), 1.0, 1 + rng.normal(0, 0.06)])
    exposed = _blur(radiance, rng.uniform(0.08, 0.22)) * (gain * balance).astype(np.float32)[:, None, None]
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    exposed *= 1 - np.float32(rng.uniform(0.0, 0.18)) * (x * x + y * y)
    codes = np.clip(exposed * np.float32((_LEVELS - 1) / 2), 0, _LEVELS - 1).astype(np.int16)
    picture = _tone_curve(rng.uniform(1.9, 2.4)).astype(np.float32)[codes]
    picture += np.float32(rng.uniform(0.8, 4.0)) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def _smooth_noise(shape: tuple[int, int], cell: int, rng: np.random.Generator) -> Array:
    """(H, W) noise of unit variance at its knots, bilinear between knots every `cell` pixels."""
    rows, columns = math.ceil(shape[0] / cell) + 2, math.ceil(shape[1] / cell) + 2
    knots = rng.standard_normal((rows, columns), dtype=np.float32)
    y, x = np.arange(shape[0], dtype=np.float32) / cell, np.arange(shape[1], dtype=np.float32) / cell
    i, j = y.astype(int), x.astype(int)
    fy, fx = (y - i)[:, None], x - j
    bands = knots[i] * (1 - fy) + knots[i + 1] * fy
    return bands[:, j] * (1 - fx) + bands[:, j + 1] * fx


def _unlit_by_projector(depth: Array, focal: float, right: bool) -> Array:
    """(H, W) pixels that a projector beside the camera does not light.

    Either something nearer is in the way, or the point is outside the projector's field of view, which is as wide as
    the camera's.
    """
    if not right:
        return _unlit_by_projector(depth[:, ::-1], focal, True)[:, ::-1]
    lit_from = (
        np.arange(depth.shape[1], dtype=np.float32) - np.float32(focal * BASELINE) / depth
    )  # the projector's column
    nearest = np.minimum.accumulate(lit_from[:, ::-1], axis=1)[:, ::-1]
    return (nearest < lit_from - np.float32(0.75)) | (lit_from < 0)


def measure_depth(
    depth: Array, cosine: Array, darkness: Array, mirror: Array, focal: float, rng: np.random.Generator
) -> Array:
    """Measure depth as a structured-light sensor does: with noise and holes.

    Holes are where surfaces are seen at a grazing angle, where nearer things hide the projected pattern, beyond the
    sensor's range, on dark and on glaring surfaces, in a few blobs and specks. Noise grows with the square of depth.

    Args:
        depth: (H, W) float32 metres, exact.
        cosine: (H, W) cosine between normal and viewing direction, in [0, 1].
        darkness: (H, W) in [0, 1]; 1 for surfaces that return no light.
        mirror: (H, W) bool, glass and lamps.
        focal: focal length in pixels.
        rng: source of the sensor's properties and of its noise.

    Returns:
        (H, W) float32 metres, 0 in the holes.
    """
    shape = (depth.shape[0], depth.shape[1])
    cell = max(4, shape[1] // 32)
    rough, patches = _smooth_noise(shape, max(2, cell // 3), rng), _smooth_noise(shape, cell, rng)
    holes = cosine + np.float32(0.04) * rough < np.float32(rng.uniform(0.14, 0.36))
    holes |= _unlit_by_projector(depth, focal, bool(rng.integers(2)))
    holes |= depth + np.float32(0.35) * rough > np.float32(rng.uniform(6.5, 9.5))
    holes |= darkness + np.float32(0.2) * rough > np.float32(rng.uniform(0.8, 1.3))
    holes |= mirror & (patches > np.float32(rng.uniform(-0.6, 1.2)))
    holes |= patches + np.float32(0.4) * rough > np.float32(rng.uniform(1.5, 3.2))
    holes |= rng.random(shape, dtype=np.float32) < np.float32(rng.uniform(0.0, 0.01))
    frayed = rng.random(shape, dtype=np.float32) < np.float32(0.4)
    grown = holes.copy()
    grown[:, 1:] |= holes[:, :-1] & frayed[:, 1:]
    grown[1:] |= holes[:-1] & frayed[1:]
    noise = np.float32(rng.uniform(0.0008, 0.0022)) * rng.standard_normal(shape, dtype=np.float32)
    measured = depth + noise * depth * depth
    return np.where(grown, np.float32(0), measured).astype(np.float32)
