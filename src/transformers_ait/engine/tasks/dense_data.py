"""Images with dense maps from a `datasets` dataset, and evaluation of predicted maps over processes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ...image_inputs_ait import native_map
from ...map_kinds_ait import MapKind, resize_labels
from ...metrics import MAP_METRICS
from ..loop.evaluation_batches import evaluate_in_batches
from ..loop.streaming import RowStream
from ..recipes.reading import RecipeError
from ..recipes.sections import DataRecipe
from .loading import load_rows, load_stream

IMAGE = "image"
MapsByTask = dict[str, Tensor]
"""Task to one map without batch axis, (H, W) or (C, H, W)."""
PredictMaps = Callable[[list[int]], tuple[list[MapsByTask], list[MapsByTask]]]
"""Row numbers to each row's predicted and true maps of the same tasks and sizes."""


class DenseRows:
    """Rows of a dataset with the column `image` (RGB) and one column of maps for every task.

    Maps are pictures or nested lists, in whatever form `native_map` takes for their kind.

    Args:
        rows: the dataset.
        kinds: what the values of each task's maps mean.
        columns: the tasks' columns; one that is not named is called like its task.
        in_memory: keep decoded pictures; otherwise every access decodes.
        crop_columns: first and last column (exclusive) to keep; None is all.
        size: height and width, or shorter edge, to resize to then, images bilinear with antialiasing, maps to the
            nearest pixel; None leaves them as they are.

    Raises:
        RecipeError: a column is missing, or `columns` names another task.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        kinds: Mapping[str, MapKind],
        columns: Mapping[str, str] | None = None,
        in_memory: bool = False,
        crop_columns: Sequence[int] | None = None,
        size: Sequence[int] | int | None = None,
    ) -> None:
        self.kinds = dict(kinds)
        self.columns = _task_columns(kinds, columns or {}, rows.column_names)
        self.rows = {name: rows.select_columns(name) for name in {IMAGE, *self.columns.values()}}
        self.stream: RowStream | None = None
        self.in_memory = in_memory
        self.crop_columns = crop_columns
        self.size = size
        self._decoded: dict[tuple[str, int, str], Image.Image | Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows[IMAGE])

    def image(self, index: Any) -> Tensor:
        """Image (3, H, W) uint8."""
        picture = self._read(IMAGE, index, None)
        assert isinstance(picture, Image.Image)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def map(self, index: Any, task: str) -> Tensor:
        """One task's native map, (H, W) or (C, H, W).

        Raises:
            TypeError, ValueError: the column holds no map of the task's kind.
        """
        column, kind = self.columns[task], self.kinds[task]
        kept = self._read(column, index, kind)
        return kept if isinstance(kept, Tensor) else native_map(kept, kind, self._name(column, index))

    def maps(self, index: Any) -> MapsByTask:
        """Native maps of every task."""
        return {task: self.map(index, task) for task in self.kinds}

    def _read(self, column: str, index: Any, kind: MapKind | None) -> Image.Image | Tensor:
        """What is kept of a row: a picture cut and resized, or likewise a native map of what was none."""
        key = column, index, kind.name if kind is not None else IMAGE
        if key in self._decoded:
            return self._decoded[key]
        kept = self._prepared(self.rows[column][index][column], column, index, kind)
        if self.in_memory:
            self._decoded[key] = kept
        return kept

    def _prepared(self, value: Any, column: str, index: Any, kind: MapKind | None) -> Image.Image | Tensor:
        if kind is None:
            return _cut_picture(value.convert("RGB"), self.crop_columns, self.size, Image.Resampling.BILINEAR)
        if isinstance(value, Image.Image):
            picture = _sixteen_bit(value) if value.mode.startswith("I") else value
            return _cut_picture(picture, self.crop_columns, self.size, Image.Resampling.NEAREST)
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == object else array  # None becomes NaN
        return _cut_map(native_map(array, kind, self._name(column, index)), self.crop_columns, self.size)

    def _name(self, column: str, index: Any) -> str:
        return f"{column} of row {index}"


class StreamedDenseRows(DenseRows):
    """The same of a stream; what `DenseRows` takes indices for are encoded rows here, and the length is unknown (0).

    Args:
        stream: the data.
        kinds: as `DenseRows`.
        columns: as `DenseRows`.
        crop_columns: as `DenseRows`.
        size: as `DenseRows`.

    Raises:
        RecipeError: as `DenseRows`.
    """

    def __init__(
        self,
        stream: RowStream,
        kinds: Mapping[str, MapKind],
        columns: Mapping[str, str] | None = None,
        crop_columns: Sequence[int] | None = None,
        size: Sequence[int] | int | None = None,
    ) -> None:
        self.kinds = dict(kinds)
        self.columns = _task_columns(kinds, columns or {}, stream.column_names)
        self.stream = stream
        self.crop_columns = crop_columns
        self.size = size

    def __len__(self) -> int:
        return 0

    def _read(self, column: str, index: Any, kind: MapKind | None) -> Image.Image | Tensor:
        assert self.stream is not None
        return self._prepared(self.stream.column(index, column), column, index, kind)

    def _name(self, column: str, index: Any) -> str:
        return f"{column} of a streamed row"


def _task_columns(kinds: Mapping[str, MapKind], columns: Mapping[str, str], found: list[str]) -> dict[str, str]:
    unknown = sorted(columns.keys() - kinds.keys())
    if unknown:
        raise RecipeError(f"data.columns names {unknown}, but the maps to read are {list(kinds)}; name those alone.")
    chosen = {task: columns.get(task, task) for task in kinds}
    missing = {IMAGE, *chosen.values()} - set(found)
    if missing:
        raise RecipeError(
            f"The dataset has no column {sorted(missing)}; its columns are {found}. data.columns maps a task to its "
            "column, such as {semantic: labels}."
        )
    return chosen


def _sixteen_bit(picture: Image.Image) -> Image.Image:
    """A picture of integers in 16 bits where they fit: older Pillow opens 16-bit files with 32."""
    pixels = np.array(picture)
    fits = pixels.size and pixels.min() >= 0 and pixels.max() < 2**16
    return Image.fromarray(pixels.astype(np.uint16)) if fits else picture


def _cut_picture(
    picture: Image.Image, columns: Sequence[int] | None, size: Sequence[int] | int | None, method: Image.Resampling
) -> Image.Image:
    if columns is not None:
        _check_columns(columns, picture.width)
        picture = picture.crop((columns[0], 0, min(columns[1], picture.width), picture.height))
    if size is None:
        return picture
    height, width = _target_size(size, picture.height, picture.width)
    return picture.resize((width, height), method)  # PIL's filters antialias


def _cut_map(native: Tensor, columns: Sequence[int] | None, size: Sequence[int] | int | None) -> Tensor:
    if columns is not None:
        _check_columns(columns, native.shape[-1])
        native = native[..., columns[0] : columns[1]]
    return native if size is None else resize_labels(native, _target_size(size, *native.shape[-2:]))


def _target_size(size: Sequence[int] | int, height: int, width: int) -> tuple[int, int]:
    """Height and width to resize to."""
    if not isinstance(size, int):
        return size[0], size[1]
    shorter = min(height, width)
    return round(height * size / shorter), round(width * size / shorter)


def _check_columns(columns: Sequence[int], width: int) -> None:
    if columns[0] >= width:
        raise RecipeError(f"data.train_columns {list(columns)} lie outside an image of {width} columns.")


@contextmanager
def explain_crop(index: Any, *maps: Tensor) -> Iterator[None]:
    """Around the augmentation of a training row, which fails where the row's size does not fit.

    Args:
        index: number of the row, or a row of a stream.
        maps: its image and maps, or the latter alone, (..., H, W).

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
            f"The maps of training {row} ({sizes} pixels) cannot be augmented: {error} Image and maps must have one "
            "size, not below the model's; data.train_size sets all."
        ) from error


def has_valid_pixels(labels: Tensor, kind: MapKind) -> Tensor:
    """Which (B,) of native maps (B, [C,] H, W) have any valid pixel."""
    marked = labels.isnan() if math.isnan(kind.invalid) else labels == kind.invalid
    if kind.has_channels:
        marked = marked.any(1) if math.isnan(kind.invalid) else marked.all(1)
    return ~marked.flatten(1).all(1)


def load_dense_rows(
    recipe: DataRecipe, kinds: Mapping[str, MapKind], resize_all: bool = False
) -> tuple[DenseRows, DenseRows]:
    """Training and evaluation rows of a recipe.

    Args:
        recipe: which data.
        kinds: what the values of each task's maps mean.
        resize_all: evaluation rows are cut and resized too.

    Raises:
        RecipeError: the dataset, a split or a column does not exist.
    """
    resized = recipe.train_columns, recipe.train_size
    eval_rows = DenseRows(
        load_rows(recipe, recipe.eval_split),
        kinds,
        recipe.columns,
        recipe.in_memory,
        *(resized if resize_all else (None, None)),
    )
    if recipe.streaming:
        stream = load_stream(recipe, recipe.train_split)
        return StreamedDenseRows(stream, kinds, recipe.columns, *resized), eval_rows
    rows = load_rows(recipe, recipe.train_split)
    return DenseRows(rows, kinds, recipe.columns, recipe.in_memory, *resized), eval_rows


def evaluate_maps(
    count: int,
    predict: PredictMaps,
    kinds: Mapping[str, MapKind],
    channels: Mapping[str, int],
    batch_size: int,
    accelerator: Accelerator,
) -> dict[str, dict[str, float]]:
    """Figures of every task over rows that the processes share out, as `MAP_METRICS` combines them.

    Args:
        count: number of rows; rows 0 .. count - 1 are evaluated.
        predict: row numbers to predicted and true maps.
        kinds: what the values of each task's maps mean.
        channels: of each task's tokenizer form, which is the number of classes where maps hold classes.
        batch_size: rows per call of `predict`.
        accelerator: the processes.
    """
    metrics = {task: MAP_METRICS[kind.metric] for task, kind in kinds.items()}

    def measure(indices: list[int]) -> list[dict[str, Any]]:
        return [
            {task: x.measure(predicted[task], true[task], channels[task]) for task, x in metrics.items()}
            for predicted, true in zip(*predict(indices), strict=True)
        ]

    rows = evaluate_in_batches(measure, count, batch_size, accelerator)
    return {task: x.combine([row[task] for row in rows]) for task, x in metrics.items()}
