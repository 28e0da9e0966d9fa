"""Pairs of image and depth map from a `datasets` dataset, and evaluation of predicted depth over processes."""

from collections.abc import Callable, Sequence

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data import SyntheticRooms  # noqa: F401 - importing the package registers its builders
from ..metrics import DEPTH_METRICS, depth_metrics_per_image
from .recipes import DataRecipe, RecipeError
from .sampling import process_share


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
        missing = {"image", "depth"} - set(rows.column_names)
        if missing:
            raise RecipeError(f"The dataset has no column {sorted(missing)}; its columns are {rows.column_names}.")
        self.rows = {name: rows.select_columns(name) for name in ("image", "depth")}
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


def _pixels(
    picture: Image.Image, is_image: bool, columns: Sequence[int] | None, size: Sequence[int] | None
) -> np.ndarray:
    """8-bit image (H, W, 3) or 16-bit depth (H, W), cut and resized."""
    picture = picture.convert("RGB") if is_image else Image.fromarray(np.array(picture).astype(np.uint16))
    if columns is not None:
        picture = picture.crop((columns[0], 0, min(columns[1], picture.width), picture.height))
    if size is not None:
        # PIL's filters antialias.
        method = Image.Resampling.BILINEAR if is_image else Image.Resampling.NEAREST
        picture = picture.resize((size[1], size[0]), method)
    return np.array(picture)


def load_depth_pairs(recipe: DataRecipe, resize_all: bool = False) -> tuple[DepthPairs, DepthPairs]:
    """Training and evaluation rows of a recipe.

    Args:
        recipe: which data.
        resize_all: evaluation rows are cut and resized too.

    Raises:
        RecipeError: the dataset, a split or a column does not exist.
    """
    splits = []
    for split, resized in ((recipe.train_split, True), (recipe.eval_split, resize_all)):
        try:
            rows = datasets.load_dataset(recipe.dataset, split=split, **recipe.options)
        except (ValueError, TypeError, OSError) as error:
            raise RecipeError(f"data.dataset {recipe.dataset!r}, split {split!r}, cannot be loaded: {error}") from error
        columns, size = (recipe.train_columns, recipe.train_size) if resized else (None, None)
        splits.append(DepthPairs(rows, recipe.in_memory, columns, size))
    return splits[0], splits[1]


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
    mine = process_share(count, accelerator.process_index, accelerator.num_processes)
    results: dict[int, dict[str, float]] = {}
    chunks = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    for chunk in tqdm(chunks, desc="evaluation", leave=False, disable=not accelerator.is_main_process):
        predictions, targets = predict(chunk)
        for index, prediction, target in zip(chunk, predictions, targets, strict=True):
            results[index] = depth_metrics_per_image(prediction, target)[0]
    gathered = dict(gather_object(list(results.items())))
    rows = [gathered[index] for index in range(count) if not np.isnan(gathered[index]["d1"])]
    return {name: float(np.mean([row[name] for row in rows])) for name in DEPTH_METRICS}
