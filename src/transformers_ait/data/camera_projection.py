"""Cameras: world to camera, camera to pixels and back, and virtual cameras around a motion.

World: metres, z up. Camera: metres, x to the right, y down, z along the optical axis.
"""

from typing import NamedTuple

import numpy as np

from .depth_normals import Pinhole

Array = np.ndarray

PICTURE_SIZES = ((1000, 1000), (1000, 1002), (1280, 720), (1920, 1080), (640, 480), (1080, 1920))
"""Width and height of virtual pictures."""

NEAREST = 0.3
"""Metres above the lowest joint below which no virtual camera stands."""


class VirtualCamera(NamedTuple):
    """A pinhole camera in the world.

    Args:
        intrinsics: focal lengths and optical axis in pixels.
        width: of the picture in pixels.
        height: of the picture in pixels.
        rotation: (3, 3), world to camera axes: its rows are the camera's axes in the world.
        position: (3,) metres in the world.
    """

    intrinsics: Pinhole
    width: int
    height: int
    rotation: Array
    position: Array


class Distortion(NamedTuple):
    """Lens distortion after Brown, with the terms and signs of OpenCV.

    Args:
        radial: k1, k2, k3.
        tangential: p1, p2.
    """

    radial: tuple[float, float, float]
    tangential: tuple[float, float]


def world_to_camera(points: Array, rotation: Array, position: Array) -> Array:
    """Points in the camera's axes.

    Args:
        points: (..., 3) metres in the world.
        rotation: (3, 3) world to camera.
        position: (3,) of the camera in the world.

    Returns:
        (..., 3) metres: x right, y down, z ahead.
    """
    return (points - position) @ np.asarray(rotation).T


def project(points: Array, camera: Pinhole, distortion: Distortion | None = None) -> Array:
    """Pixels that points are seen at.

    Args:
        points: (..., 3) metres in the camera's axes.
        camera: intrinsics.
        distortion: None for a lens without.

    Returns:
        (..., 2) x and y in pixels; NaN for points that do not lie ahead of the camera.
    """
    depth = np.where(points[..., 2] > 0, points[..., 2], np.nan)
    x, y = points[..., 0] / depth, points[..., 1] / depth
    if distortion is not None:
        (k1, k2, k3), (p1, p2) = distortion
        square = x * x + y * y
        radial = 1 + square * (k1 + square * (k2 + square * k3))
        x, y = (
            x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x),
            y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
        )
    return np.stack([x * camera.fx + camera.cx, y * camera.fy + camera.cy], -1)


def unproject(pixels: Array, depth: Array, camera: Pinhole) -> Array:
    """Points from pixels and depth, the inverse of `project` without distortion.

    Args:
        pixels: (..., 2).
        depth: (...) metres along the optical axis.
        camera: intrinsics.

    Returns:
        (..., 3) metres in the camera's axes.
    """
    x = (pixels[..., 0] - camera.cx) / camera.fx
    y = (pixels[..., 1] - camera.cy) / camera.fy
    return np.stack([x * depth, y * depth, depth], -1)


def quaternion_rotation(quaternion: Array) -> Array:
    """Matrix of a quaternion.

    Args:
        quaternion: (4,) w, x, y, z of any length but 0.

    Returns:
        (3, 3) for column vectors.
    """
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def sample_camera(joints: Array, rng: np.random.Generator) -> VirtualCamera:
    """A random camera that sees a whole motion: 35 to 75 degrees wide, from just far enough to 1.8 times as far.

    Args:
        joints: (T, J, 3) metres in the world, z up.
        rng: source of chance.

    Returns:
        The camera, aimed near the middle of the motion, with every point well ahead of it.
    """
    points = joints.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    radius = max(float(np.linalg.norm(points - middle, axis=-1).max()), 0.5)
    width, height = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
    focal = width / 2 / np.tan(np.radians(rng.uniform(35, 75)) / 2) * max(1, height / width)
    half_angle = np.arctan(min(width, height) / 2 / focal)
    distance = radius / np.sin(half_angle) * rng.uniform(1.0, 1.8)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-10, 35))
    away = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    position = middle + distance * away
    position[2] = max(position[2], low[2] + NEAREST)
    target = middle + rng.normal(0, 0.05 * radius, 3)
    rotation = look_at(position, target, np.radians(rng.normal(0, 1.5)))
    stretch = rng.uniform(0.99, 1.01)
    axis = np.array([width, height]) * (0.5 + rng.uniform(-0.02, 0.02, 2))
    intrinsics = Pinhole(float(focal), float(focal * stretch), float(axis[0]), float(axis[1]))
    return VirtualCamera(intrinsics, width, height, rotation, position)


def look_at(position: Array, target: Array, roll: float = 0.0) -> Array:
    """Rotation, world to camera, of a camera that looks at a point with the world's z axis upwards in the picture.

    Args:
        position: (3,) of the camera.
        target: (3,) where it looks; not straight above or below it.
        roll: radians that the camera is turned about its optical axis, clockwise as it looks.

    Returns:
        (3, 3), its rows right, down and ahead.
    """
    ahead = (target - position) / np.linalg.norm(target - position)
    right = np.cross(ahead, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(ahead, right)
    cosine, sine = np.cos(roll), np.sin(roll)
    return np.stack([cosine * right + sine * down, cosine * down - sine * right, ahead])
