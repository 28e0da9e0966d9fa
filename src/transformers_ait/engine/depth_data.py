"""Pairs of image and depth map from a `datasets` dataset, and evaluation of predicted depth over processes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..metrics import DEPTH_METRICS, depth_metrics_per_image
from .evaluation_batches import evaluate_in_batches
from .loading import load_rows, load_stream
from .recipes import DataRecipe, RecipeError
from .streaming import RowStream


class DepthPairs:
    """Rows of a dataset with the columns `image` (RGB) and `depth` (16-bit millimetres, 0 = invalid).

    Args:
        rows: the dataset.
        in_memory: keep decoded rows, 8-bit images and 16-bit depth; otherwise every access decodes.
        columns: first and last column (exclusive) to keep; None is all.
        size: height and width to resize to then, images bilinear with antialiasing, depth to the nearest pixel; None
            leaves them as they are.

    Raises:
        RecipeError: a column is missing.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        in_memory: bool = False,
        columns: Sequence[int] | None = None,
        size: Sequence[int] | None = None,
    ) -> None:
        _check_columns(rows.column_names)
        self.rows = {name: rows.select_columns(name) for name in ("image", "depth")}
        self.stream: RowStream | None = None
        self.in_memory = in_memory
        self.columns = columns
        self.size = size
        self._decoded: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows["image"])

    def image(self, index: int) -> Tensor:
        """Image (3, H, W) uint8."""
        return torch.from_numpy(self._read("image", index)).permute(2, 0, 1)

    def depth(self, index: int) -> Tensor:
        """Depth map (1, H, W) float32 metres, 0 = invalid."""
        return torch.from_numpy(self._read("depth", index).astype(np.float32) / 1000.0)[None]

    def _read(self, column: str, index: int) -> np.ndarray:
        if (column, index) in self._decoded:
            return self._decoded[column, index]
        pixels = _pixels(self.rows[column][index][column], column == "image", self.columns, self.size)
        if self.in_memory:
            self._decoded[column, index] = pixels
        return pixels


class StreamedDepthPairs(DepthPairs):
    """The same of a stream; what `DepthPairs` takes indices for are encoded rows here, and the length is unknown (0).

    Args:
        stream: the data.
        columns: as `DepthPairs`.
        size: as `DepthPairs`.

    Raises:
        RecipeError: a column is missing.
    """

    def __init__(
        self, stream: RowStream, columns: Sequence[int] | None = None, size: Sequence[int] | None = None
    ) -> None:
        _check_columns(stream.column_names)
        self.stream = stream
        self.columns = columns
        self.size = size

    def __len__(self) -> int:
        return 0

    def _read(self, column: str, index: Any) -> np.ndarray:
        assert self.stream is not None
        return _pixels(self.stream.column(index, column), column == "image", self.columns, self.size)


def _check_columns(names: list[str]) -> None:
    missing = {"image", "depth"} - set(names)
    if missing:
        raise RecipeError(f"The dataset has no column {sorted(missing)}; its columns are {names}.")


def _pixels(
    picture: Image.Image, is_image: bool, columns: Sequence[int] | None, size: Sequence[int] | None
) -> np.ndarray:
    """8-bit image (H, W, 3) or 16-bit depth (H, W), cut and resized."""
    picture = picture.convert("RGB") if is_image else Image.fromarray(np.array(picture).astype(np.uint16))
    if columns is not None:
        if columns[0] >= picture.width:
            raise RecipeError(f"data.train_columns {list(columns)} lie outside an image of {picture.width} columns.")
        picture = picture.crop((columns[0], 0, min(columns[1], picture.width), picture.height))
    if size is not None:
        # PIL's filters antialias.
        method = Image.Resampling.BILINEAR if is_image else Image.Resampling.NEAREST
        picture = picture.resize((size[1], size[0]), method)
    return np.array(picture)


@contextmanager
def explain_crop(index: Any, *maps: Tensor) -> Iterator[None]:
    """Around the augmentation of a training row, which fails where the row's size does not fit.

    Args:
        index: number of the row, or a row of a stream.
        maps: its image and depth map, or the latter alone, (C, H, W).

    Raises:
        RecipeError: maps of different sizes, or smaller than the crop.
    """
    try:
        if len({x.shape[-2:] for x in maps}) > 1:
            raise ValueError("they differ in size.")
        yield
    except ValueError as error:
        row = f"row {index}" if isinstance(index, int) else "a streamed row"
        sizes = " and ".join(f"{x.shape[-2]} x {x.shape[-1]}" for x in maps)
        raise RecipeError(
            f"The maps of training {row} ({sizes} pixels) cannot be augmented: {error} Image and depth map must have "
            "one size, not below the model's; data.train_size sets both."
        ) from error


def load_depth_pairs(recipe: DataRecipe, resize_all: bool = False) -> tuple[DepthPairs, DepthPairs]:
    """Training and evaluation rows of a recipe.

    Args:
        recipe: which data.
        resize_all: evaluation rows are cut and resized too.

    Raises:
        RecipeError: the dataset, a split or a column does not exist.
    """
    resized = recipe.train_columns, recipe.train_size
    eval_rows = DepthPairs(
        load_rows(recipe, recipe.eval_split), recipe.in_memory, *(resized if resize_all else (None, None))
    )
    if recipe.streaming:
        return StreamedDepthPairs(load_stream(recipe, recipe.train_split), *resized), eval_rows
    return DepthPairs(load_rows(recipe, recipe.train_split), recipe.in_memory, *resized), eval_rows


def evaluate_depth(
    count: int,
    predict: Callable[[list[int]], tuple[list[Tensor], list[Tensor]]],
    batch_size: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Mean depth metrics over rows that the processes share out.

    Args:
        count: number of rows; rows 0 .. count - 1 are evaluated.
        predict: row indices to predicted and true depth maps (H, W) in metres.
        batch_size: rows per call of `predict`.
        accelerator: the processes.
    """

    def metrics(indices: list[int]) -> list[dict[str, float]]:
        return [depth_metrics_per_image(*pair)[0] for pair in zip(*predict(indices), strict=True)]

    return mean_depth_metrics(evaluate_in_batches(metrics, count, batch_size, accelerator))


def mean_depth_metrics(per_row: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the rows that have a valid pixel; NaN where none has."""
    # d1 is NaN only without any valid pixel; other metrics may be NaN for themselves, and must stay so.
    valid = [metrics for metrics in per_row if not math.isnan(metrics["d1"])]
    return {name: float(np.mean([row[name] for row in valid])) if valid else math.nan for name in DEPTH_METRICS}
