"""Flicker: how much the maps of a video change where its pictures do not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..map_kinds_ait import MapKind
from .normals import normal_angles

FLICKER_UNITS = {"depth": "of the depth", "normals": "degrees", "segmentation": "of the pixels", "values": ""}
"""By `MapKind.metric`, what a change is counted in."""

STATIC_CHANGE = 0.02  # of the full range of colours, after blurring; sensor noise is below
BLUR = 5  # pixels
MARGIN = 9  # pixels around what moves that do not count as static either


def colour_change(before: Tensor, after: Tensor) -> Tensor:
    """How much a picture changes at every pixel: mean absolute difference of the colours' means over 5 x 5 pixels.

    Args:
        before: (3, H, W) uint8, or float in [0, 1].
        after: likewise, of the same size.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ValueError: pictures of different sizes.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"Frames of a video must have one size, got {tuple(before.shape)} and {tuple(after.shape)}; resize them."
        )
    one, other = (x.float() / 255 if x.dtype == torch.uint8 else x.float() for x in (before, after))
    # Differences are taken of blurred colours: the noise of single pixels would pass for motion.
    blurred = F.avg_pool2d(F.pad((one - other)[None], (BLUR // 2,) * 4, mode="replicate"), BLUR, stride=1)
    return blurred[0].abs().mean(dim=0)


def static_pixels(before: Tensor, after: Tensor) -> Tensor:
    """Where nothing moves between two frames (3, H, W): (H, W) bool, less a margin of 4 pixels around what does.

    Raises:
        ValueError: pictures of different sizes.
    """
    moving = (colour_change(before, after) > STATIC_CHANGE).float()
    return F.max_pool2d(moving[None, None], MARGIN, stride=1, padding=MARGIN // 2)[0, 0] == 0


def map_change(before: Tensor, after: Tensor, kind: MapKind) -> Tensor:
    """How much a map changes at every pixel (H, W) float64.

    Args:
        before: a final map ([C,] H, W) of the kind.
        after: likewise, of the same size.
        kind: depth: relative change, |d' - d| / d. Normals: degrees. Classes: 1 where the class changes. Values: mean
            absolute change of the channels.
    """
    if kind.has_scores:
        return (before != after).double()
    if kind.metric == "normals":
        angles = torch.zeros(before.shape[-2:], dtype=torch.float64)
        angles[kind.valid(before[None])[0, 0]] = normal_angles(after, before)
        return angles
    change = (after.double() - before.double()).abs()
    return change / before.double() if kind.metric == "depth" else change.mean(dim=0)


class Flicker:
    """Mean change of a video's maps from frame to frame, over the pixels whose picture stays the same.

    Args:
        kind: of the maps, see `map_change`.
    """

    def __init__(self, kind: MapKind) -> None:
        self.kind = kind
        self.total = 0.0
        self.count = 0
        self._before: tuple[Tensor, Tensor] | None = None

    def update(self, picture: Tensor, values: Tensor) -> None:
        """Take the next frame.

        Args:
            picture: (3, H, W) uint8, or float in [0, 1].
            values: final map ([C,] H, W).

        Raises:
            ValueError: a picture of another size than that before.
        """
        if self._before is not None:
            static = static_pixels(self._before[0], picture)
            self.total += float(map_change(self._before[1], values, self.kind)[static].sum())
            self.count += int(static.sum())
        self._before = picture, values

    def compute(self) -> float:
        """The figure; NaN where there are no static pixels."""
        return self.total / self.count if self.count else float("nan")


__all__ = ["FLICKER_UNITS", "Flicker", "colour_change", "map_change", "static_pixels"]
