"""A depth map and its photograph as points in space, and as a glb file that any viewer of glTF opens."""

import math
from typing import Any

import numpy as np
from PIL import Image

from ..data import Pinhole
from ..data.camera_projection import unproject
from ..visualization_colors import linear_light
from .read_out import sampled_positions

DEFAULT_FOV = 60.0
"""Degrees of the horizontal field of view where nothing better is known, about that of a phone's main camera."""
MAX_POINTS = 200_000
GLTF_AXES = np.array([1.0, -1.0, -1.0], np.float32)
"""glTF's y points up and its z towards the viewer, a camera's down and ahead."""


def pinhole_of(size: tuple[int, int], fov: float) -> Pinhole:
    """A camera with square pixels that looks through the middle of the picture.

    Args:
        size: (height, width) pixels.
        fov: horizontal field of view in degrees, in (0, 180).

    Raises:
        ValueError: another field of view.
    """
    if not (isinstance(fov, int | float) and 0 < fov < 180):
        raise ValueError(f"fov must lie between 0 and 180 degrees, got {fov!r}; {DEFAULT_FOV:g} fits most phones.")
    height, width = size
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    return Pinhole(focal, focal, (width - 1) / 2, (height - 1) / 2)


def coloured_points(
    photo: Image.Image, depth: np.ndarray, fov: float = DEFAULT_FOV, max_points: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Points of a depth map in glTF's axes, with the photograph's colours.

    Args:
        photo: RGB, of the depth map's size.
        depth: (H, W) metres along the optical axis; pixels that are not above 0, or not finite, give no point.
        fov: horizontal field of view of the camera in degrees.
        max_points: larger maps are sampled at equal steps.

    Returns:
        (n, 3) float32 metres: x right, y up, z towards the camera, which stands in the origin; and (n, 3) uint8 RGB.

    Raises:
        ValueError: sizes that differ, or a field of view that no pinhole camera has.
    """
    if depth.ndim != 2 or depth.shape != (photo.height, photo.width):
        raise ValueError(f"depth must be (H, W) of the photo, {(photo.height, photo.width)}, got {depth.shape}.")
    camera = pinhole_of((photo.height, photo.width), fov)
    shrink = min(1.0, math.sqrt(max_points / depth.size))
    rows, columns = (sampled_positions(x, max(1, int(x * shrink))) for x in depth.shape)
    metres = depth[rows[:, None], columns]
    pixels = np.stack(np.meshgrid(columns, rows), -1)
    known = np.isfinite(metres) & (metres > 0)
    points = unproject(pixels[known], metres[known], camera).astype(np.float32) * GLTF_AXES
    return points, np.asarray(photo.convert("RGB"))[rows[:, None], columns][known]


def glb(points: np.ndarray, colors: np.ndarray) -> bytes:
    """A glb file of a point cloud.

    Args:
        points: (n, 3) metres in glTF's axes, at least one.
        colors: (n, 3) uint8 RGB of a photograph (sRGB).

    Raises:
        ImportError: trimesh is missing.
        ValueError: no points.
    """
    if not len(points):
        raise ValueError("There is no point to write: the depth map holds no positive depth.")
    # Colours of glTF's vertices are linear, those of photographs are not; viewers would show a faded room.
    linear = (linear_light(colors / 255) * 255).round().astype(np.uint8)
    cloud = _trimesh().PointCloud(points, np.concatenate([linear, np.full((len(colors), 1), 255, np.uint8)], 1))
    return cloud.export(file_type="glb")


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise ImportError('Point clouds need trimesh: pip install "transformers_ait[app]".') from error
    return trimesh
