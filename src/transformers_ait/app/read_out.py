"""What the pointer reads out of a picture: values of a map on a coarse grid, for the page's script.

All values of a large photograph would be some hundred megabytes, and a pointer tells some hundred positions apart. So
values are taken, not averaged, at the middles of at most `READ_OUT_SIDE` cells along a side: what is read is the
value of one pixel, whose position is named beside it.
"""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..cli.writing import sixteen_bits
from ..map_kinds_ait import MapKind
from ..visualization_colors import ClassNames, names_by_id, native_array

READ_OUT_SIDE = 320
UNIT_STEPS = 10_000
"""Steps between 0 and 1 of what is sent of unit vectors."""


def sampled_positions(size: int, largest: int) -> np.ndarray:
    """Pixels in the middles of at most `largest` equal cells, along a side of `size` pixels.

    The page's script computes the same positions from the numbers of pixels and cells.
    """
    cells = min(size, largest)
    return ((2 * np.arange(cells) + 1) * size) // (2 * cells)


def sampled(values: np.ndarray, largest: int) -> np.ndarray:
    """A map (..., H, W), or as it is where no side exceeds `largest`; else (..., h, w) of its values.

    Both sides shrink by the same factor, so that the cells are squares.
    """
    height, width = values.shape[-2:]
    shrink = min(1.0, largest / max(height, width))
    rows = sampled_positions(height, max(1, round(height * shrink)))
    columns = sampled_positions(width, max(1, round(width * shrink)))
    return values[..., rows[:, None], columns]


@dataclass(frozen=True)
class ReadOut:
    """Values under the pointer.

    Args:
        kind: how the script words them: "metres" (uint16 millimetres, 0 unknown), "vector" (int16 of three
            channels, `UNIT_STEPS` to one, all 0 unknown), "name" (uint16 numbers from 1 of `names`, 0 none) or "values"
            (float32, NaN unknown).
        grid: (C, h, w).
        size: (height, width) of the map in pixels.
        names: of the numbers, for "name".
    """

    kind: str
    grid: np.ndarray
    size: tuple[int, int]
    names: Sequence[str] = ()

    def attributes(self) -> str:
        """Attributes of the HTML element that the script reads."""
        channels, height, width = self.grid.shape
        data = base64.b64encode(self.grid.astype(self.grid.dtype.newbyteorder("<")).tobytes()).decode()
        given = {
            "kind": self.kind,
            "cells": f"{channels},{height},{width}",
            "pixels": f"{self.size[0]},{self.size[1]}",
            "names": json.dumps(list(self.names)),
            "grid": data,
        }
        return " ".join(f'data-{name}="{html.escape(value)}"' for name, value in given.items())


def map_read_out(values: Tensor, kind: MapKind, class_names: ClassNames | None = None) -> ReadOut:
    """Read-out of a native map.

    Args:
        values: (H, W) metres or class ids, (3, H, W) unit vectors, or (C, H, W) values.
        kind: of the map.
        class_names: of the ids.

    Raises:
        ValueError: a map of another shape than its kind's.
    """
    array = native_array(values, kind, kind.name)
    size = array.shape[-2], array.shape[-1]
    small = sampled(array, READ_OUT_SIDE)
    if kind.metric == "depth":
        # The numbers of the 16-bit PNG, so the page and the file never differ by a rounding.
        return ReadOut("metres", sixteen_bits(torch.from_numpy(small.copy()), kind)[None], size)
    if kind.colors == "vectors":
        length = np.linalg.norm(small, axis=0)
        unit = np.where(length > 0.5, small / length.clip(1e-6), 0.0)
        return ReadOut("vector", np.nan_to_num(unit * UNIT_STEPS).round().astype(np.int16), size)
    if kind.colors == "categories":
        known = names_by_id(class_names)
        present = np.unique(small[small != kind.invalid])
        numbers = np.searchsorted(present, small) + 1
        grid = np.where(small != kind.invalid, numbers, 0).astype(np.uint16)
        return ReadOut("name", grid[None], size, [known.get(int(x), f"class {x}") for x in present])
    return ReadOut("values", np.where(np.isfinite(small), small, np.nan).astype(np.float32), size)


def object_read_out(masks: Tensor | None, boxes: Tensor | None, names: Sequence[str], size: tuple[int, int]) -> ReadOut:
    """Read-out of objects: of those that cover a pixel, the smallest.

    Args:
        masks: (n, H, W) bool, or None.
        boxes: (n, 4) xyxy pixels, where there are no masks.
        names: of the objects, with what else is to be read.
        size: (height, width) pixels.
    """
    rows, columns = (sampled_positions(x, max(1, round(x * min(1, READ_OUT_SIDE / max(size))))) for x in size)
    grid = np.zeros((len(rows), len(columns)), np.uint16)
    if masks is not None:
        regions = [mask.numpy()[rows[:, None], columns] for mask in masks]
    else:
        assert boxes is not None
        regions = [
            ((columns >= x1) & (columns <= x2)) & ((rows >= y1) & (rows <= y2))[:, None]
            for x1, y1, x2, y2 in boxes.tolist()
        ]
    for index in sorted(range(len(regions)), key=lambda x: -regions[x].sum()):
        grid[regions[index]] = index + 1
    return ReadOut("name", grid[None], size, names)
