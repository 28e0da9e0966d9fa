"""How square windows cover an image, and how they become one map again."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

WINDOW_BLENDINGS = ("smooth", "average")


class WindowLayout(NamedTuple):
    """How one image is covered by square windows.

    Args:
        canvas: (height, width) the image is resized to.
        dim: dimension the windows move along: -2 in portrait images, else -1.
        offsets: first row or column of each window on the canvas.
    """

    canvas: tuple[int, int]
    dim: int
    offsets: tuple[int, ...]


def window_layout(image_size: tuple[int, int], window: int, num_windows: int) -> WindowLayout:
    """Canvas and offsets of the test protocol: two windows at 0 and 160 in a 480 x 640 image (released configuration).

    The shorter edge becomes `window`, keeping aspect; the longer is then limited to `window`..`num_windows * window`,
    so that the windows always cover it and only more elongated images are squashed.

    Args:
        image_size: (height, width) of the image, upright.
        window: side of the square windows in pixels.
        num_windows: windows per image.
    """
    height, width = image_size
    length = round(max(height, width) * window / min(height, width))
    length = min(max(length, window), num_windows * window)
    step = (length - window) / max(num_windows - 1, 1)
    offsets = tuple(round(index * step) for index in range(num_windows))
    if height > width:
        return WindowLayout((length, window), -2, offsets)
    return WindowLayout((window, length), -1, offsets)


def blend_windows(windows: Tensor, layout: WindowLayout, blending: str) -> Tensor:
    """One map of its overlapping windows, each pixel a weighted mean over the windows that show it.

    Args:
        windows: (windows, [C,] S, S).
        layout: where they lie.
        blending: "average" weighs windows alike; "smooth" by a raised cosine along `layout.dim`, which is near 0 at the
            borders of a window, so that none shows where windows overlap.

    Returns:
        ([C,] height, width) of `layout.canvas`.
    """
    window = windows.shape[-1]
    weight = windows.new_ones(window)
    if blending == "smooth" and len(windows) > 1:
        centres = torch.arange(window, device=windows.device, dtype=windows.dtype) + 0.5
        weight = (centres * (math.pi / window)).sin().square()
    if layout.dim == -2:
        weight = weight[:, None]
    total = windows.new_zeros(*windows.shape[1:-2], *layout.canvas)
    share = windows.new_zeros(layout.canvas)
    for single, offset in zip(windows, layout.offsets, strict=True):
        total.narrow(layout.dim, offset, window).addcmul_(single, weight)
        share.narrow(layout.dim, offset, window).add_(weight)
    return total.div_(share)


__all__ = ["WINDOW_BLENDINGS", "WindowLayout", "blend_windows", "window_layout"]
