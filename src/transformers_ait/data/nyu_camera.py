"""The camera of NYU Depth v2, and normals from its depth."""

import numpy as np

from .depth_normals import Pinhole, normals_from_depth, normals_to_pixels

NYU_CAMERA = Pinhole(fx=518.858, fy=519.470, cx=325.582, cy=253.736)
"""Of the color image, to which depth is aligned."""

NYU_SIZE = (480, 640)
"""Height and width that the camera belongs to."""


def require_camera_size(depth: np.ndarray, name: str) -> None:
    """Refuse depth maps that NYU's camera did not take, as far as the size shows it.

    Args:
        depth: (H, W).
        name: what to call it.

    Raises:
        ValueError: if it is of another size.
    """
    if depth.shape != NYU_SIZE:
        height, width = depth.shape
        raise ValueError(
            f"normals need NYU's camera, which is known for {NYU_SIZE[1]} x {NYU_SIZE[0]} pixels, but {name} is "
            f"{width} x {height}: take the original frames, or leave out normals=True"
        )


def normals_of_frame(depth: np.ndarray, name: str) -> np.ndarray:
    """Normals of a frame as pixels.

    Args:
        depth: (480, 640) uint16 millimetres, 0 = invalid.
        name: what to call it.

    Returns:
        (480, 640, 3) uint8, n = value / 127.5 - 1; (128, 128, 128) where there is no normal.

    Raises:
        ValueError: if it is of another size.
    """
    require_camera_size(depth, name)
    return normals_to_pixels(normals_from_depth(depth / 1000, NYU_CAMERA))
