"""Evaluation of depth: predictions from images, reconstructions by a tokenizer, and constants, by nine metrics."""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from ..configuration_ait import AiTVQVAEConfig
from ..image_processing_ait_depth import MIN_DEPTH, AiTDepthImageProcessor
from ..metrics import DEPTH_METRICS, NYU_EVAL_CROP, depth_metrics_per_image
from ..metrics.depth import NYU_IMAGE_SIZE
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..modeling_ait_vqvae import AiTVQVAEModel
from ..visualization import DepthPanelRow, depth_panel
from .depth_data import DepthPairs, mean_depth_metrics
from .evaluation_batches import evaluate_in_batches
from .evaluation_inputs import (
    Checkpoint,
    EvaluationError,
    EvaluationSettings,
    find_processor,
    require_package,
)

HARD = {"soft_feedback": False, "soft_decode": False}
MILLIMETRES = 2**16  # of a 16-bit map

Predict = Callable[[list[int]], list[Tensor]]
"""Row numbers to depth maps (H, W) in metres, as large as the truth or cut at bottom and right."""


class DepthEvaluation:
    """The rows that depth is evaluated on.

    Args:
        rows: with the columns `image` and `depth`, and perhaps `name`.
        baseline_rows: rows whose mean and median depth the constant predictions are.
        settings: what to evaluate.
        accelerator: the processes.

    Raises:
        RecipeError: a column is missing.
        EvaluationError: images that the crop does not fit; a package is missing.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        baseline_rows: datasets.Dataset,
        settings: EvaluationSettings,
        accelerator: Accelerator,
    ) -> None:
        self.pairs, self.baseline_pairs = DepthPairs(rows), DepthPairs(baseline_rows)
        self.settings = settings
        self.accelerator = accelerator
        self.names = _row_names(rows)
        self.crop = NYU_EVAL_CROP if settings.nyu_crop else None
        size = tuple(self.pairs.depth(0).shape[1:])
        if self.crop is not None and size != NYU_IMAGE_SIZE:
            raise EvaluationError(
                f"The crop of NYU Depth v2 is for maps of 480 x 640, but row 0 is {size[0]} x {size[1]}; evaluate "
                "without it (--eval-crop none)."
            )
        if settings.output is not None and settings.panels:
            require_package("matplotlib", "The picture of the worst cases")

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise an EvaluationError if a checkpoint lacks what its prediction needs."""
        if not isinstance(checkpoint.config, AiTVQVAEConfig):
            find_processor(checkpoint, AiTDepthImageProcessor)

    def contenders(self, checkpoint: Checkpoint) -> Iterator[tuple[str, Predict]]:
        """Ways to use a checkpoint, each with its name."""
        config, device = checkpoint.config, self.accelerator.device
        if isinstance(config, AiTVQVAEConfig):
            tokenizer = AiTVQVAEModel.from_pretrained(checkpoint.folder).eval().to(device)
            yield "reconstruction of the truth", lambda indices: self._reconstruct(tokenizer, indices)
            return
        model = AiTForDenseAndInstancePrediction.from_pretrained(checkpoint.folder).eval().to(device)
        processor = find_processor(checkpoint, AiTDepthImageProcessor)
        for label, switches in token_modes(config, self.settings.soft_only):
            yield label, partial(self._predict, model, processor, switches)

    def constants(self) -> Iterator[tuple[str, Predict]]:
        """Two predictions that know no image: the mean and the median of all valid true depths."""
        counts = self._count_depths()
        for label, metres in (("constant", _mean(counts)), ("constant, median", _median(counts))):
            yield label, partial(self._everywhere, metres)

    def _everywhere(self, metres: float, indices: list[int]) -> list[Tensor]:
        return [torch.full_like(truth, metres) for truth in self._truths(indices)]

    def measure(self, predict: Predict, name: str) -> list[dict[str, float]]:
        """The nine metrics of every row, all NaN where a row has no valid pixel."""

        def metrics(indices: list[int]) -> list[dict[str, float]]:
            predictions = predict(indices)
            return [
                depth_metrics_per_image(prediction, _cut(truth, prediction), self.crop)[0]
                for prediction, truth in zip(predictions, self._truths(indices), strict=True)
            ]

        return evaluate_in_batches(metrics, len(self.pairs), self.settings.batch_size, self.accelerator, name)

    def write(self, predict: Predict, per_row: Sequence[dict[str, float]], folder: Path) -> list[str]:
        """Write `per_image.csv` and, of the rows with the largest RMSE, `worst.png`; returns the files' names."""
        with (folder / "per_image.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["row", "name", *DEPTH_METRICS])
            writer.writeheader()
            for row, (name, metrics) in enumerate(zip(self.names, per_row, strict=True)):
                writer.writerow({"row": row, "name": name, **metrics})
        measured = [row for row, metrics in enumerate(per_row) if not math.isnan(metrics["rmse"])]
        worst = sorted(measured, key=lambda row: -per_row[row]["rmse"])[: self.settings.panels]
        if not worst:
            return ["per_image.csv"]
        shown = []
        for row in worst:
            with torch.no_grad(), self.accelerator.autocast():
                prediction = predict([row])[0]
            truth = _cut(self._truths([row])[0], prediction)
            image = self.pairs.image(row)[:, : truth.shape[0], : truth.shape[1]]
            title = f"{self.names[row]}: RMSE {per_row[row]['rmse']:.3f} m"
            shown.append(DepthPanelRow(image.permute(1, 2, 0).numpy(), prediction, truth, title))
        depth_panel(shown, folder / "worst.png")
        return ["per_image.csv", "worst.png"]

    def _truths(self, indices: list[int]) -> list[Tensor]:
        return [self.pairs.depth(index)[0] for index in indices]

    def _predict(
        self,
        model: AiTForDenseAndInstancePrediction,
        processor: AiTDepthImageProcessor,
        switches: dict[str, Any],
        indices: list[int],
    ) -> list[Tensor]:
        """Windows and flips as the image processor defines them."""
        images = [self.pairs.image(index) for index in indices]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        for index, size, truth in zip(indices, sizes, self._truths(indices), strict=True):
            if size != truth.shape:
                raise EvaluationError(
                    f"Row {index} ({self.names[index]}) has an image of {size} and a depth map of "
                    f"{tuple(truth.shape)}; both must have one size."
                )
        pixel_values = processor(images, return_tensors="pt")["pixel_values"].to(self.accelerator.device)
        outputs = model.generate(pixel_values, task="depth", **switches)
        results = processor.post_process_depth_estimation(outputs, sizes)
        return [result["predicted_depth"].cpu() for result in results]

    def _reconstruct(self, tokenizer: AiTVQVAEModel, indices: list[int]) -> list[Tensor]:
        """True maps, cut at bottom and right to whole tokens, after encoding and decoding."""
        ratio = tokenizer.config.downsample_ratio
        truths = [x[: x.shape[0] // ratio * ratio, : x.shape[1] // ratio * ratio] for x in self._truths(indices)]
        stacked = len({truth.shape for truth in truths}) == 1
        batches = [torch.stack(truths)] if stacked else [truth[None] for truth in truths]
        found = [tokenizer(batch[:, None].to(self.accelerator.device)).reconstruction[:, 0] for batch in batches]
        return [depth.float().clamp(min=MIN_DEPTH).cpu() for batch in found for depth in batch]

    def _count_depths(self) -> np.ndarray:
        """How often each whole millimetre occurs, summed over processes."""
        accelerator, pairs = self.accelerator, self.baseline_pairs
        counts = np.zeros(MILLIMETRES, dtype=np.int64)
        mine = range(len(pairs))[accelerator.process_index :: accelerator.num_processes]
        for index in tqdm(mine, desc="constants", leave=False, disable=not accelerator.is_main_process):
            millimetres = (pairs.depth(index) * 1000).round().long().flatten()
            counts += np.bincount(millimetres.numpy(), minlength=MILLIMETRES)
        return np.sum(gather_object([counts]), axis=0)


def mean_metrics(per_row: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the rows that have a valid pixel.

    Raises:
        EvaluationError: there is none.
    """
    means = mean_depth_metrics(per_row)
    if math.isnan(means["d1"]):
        raise EvaluationError(
            "No row has a valid true depth (0.001 to 10 m, inside the crop); `depth` must be 16-bit millimetres."
        )
    return means


def token_modes(config: object, soft_only: bool) -> list[tuple[str, dict[str, bool]]]:
    """Names of the ways to decode, and the arguments of `generate` for them.

    Args:
        config: the model's configuration.
        soft_only: leave out hard tokens of a model made for soft ones.
    """
    if getattr(config, "parallel", False):
        return [("parallel", {})]
    soft = getattr(config, "soft_feedback", False) or getattr(config, "soft_decode", False)
    if not soft:
        return [("autoregressive, hard tokens", {})]
    modes: list[tuple[str, dict[str, bool]]] = [("autoregressive, soft tokens", {})]
    return modes if soft_only else [*modes, ("autoregressive, hard tokens", dict(HARD))]


def _row_names(rows: datasets.Dataset) -> list[str]:
    """The column `name` or `index`, else row numbers."""
    for column in ("name", "index"):
        if column in rows.column_names:
            return [str(value) for value in rows[column]]
    return [str(row) for row in range(len(rows))]


def _cut(truth: Tensor, prediction: Tensor) -> Tensor:
    return truth[: prediction.shape[0], : prediction.shape[1]]


def _mean(counts: np.ndarray) -> float:
    """Mean in metres of all depths but 0."""
    valid = counts[1:]
    if not valid.sum():
        raise EvaluationError("No row has a valid true depth; `depth` must be 16-bit millimetres, 0 = invalid.")
    return float((valid * np.arange(1, MILLIMETRES)).sum() / valid.sum() / 1000)


def _median(counts: np.ndarray) -> float:
    """Median in metres of all depths but 0, of two middle values the mean."""
    below = counts[1:].cumsum()
    middle = [int(np.searchsorted(below, rank, side="right")) + 1 for rank in ((below[-1] - 1) // 2, below[-1] // 2)]
    return sum(middle) / 2000
