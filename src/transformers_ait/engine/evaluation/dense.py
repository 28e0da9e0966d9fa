"""Evaluation of dense tasks: predictions from images, reconstructions by a tokenizer, and constants."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor

from ...configuration_plain_dense import AiTPlainDenseConfig
from ...configuration_tokenizers import AiTVQVAEConfig
from ...configuration_unipixtask import DenseDecoderConfig
from ...image_processing_ait_dense import AiTDenseImageProcessor
from ...metrics import MAP_METRICS, NYU_EVAL_CROP
from ...metrics.depth import NYU_IMAGE_SIZE
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ...modeling_ait_vqvae import AiTVQVAEModel
from ...modeling_dense_decoder import DenseDecoderModel
from ...modeling_plain_dense import AiTPlainDenseModel
from ...outputs_ait import AiTOutput, DenseMaps
from ...visualization import PanelRow, dense_panel
from ..loop.evaluation_batches import evaluate_in_batches
from ..tasks.dense_codes import flat_views
from ..tasks.dense_data import DenseRows
from .constants import constant_values
from .inputs import (
    Checkpoint,
    DenseTarget,
    EvaluationError,
    EvaluationSettings,
    find_processor,
    require_package,
)

HARD = {"soft_feedback": False, "soft_decode": False}

Predict = Callable[[list[int]], list[dict[str, Tensor]]]
"""Row numbers to each row's final maps ([C,] H, W) by task, as large as the truth or cut at bottom and right."""


class DenseEvaluation:
    """The rows that dense tasks are evaluated on.

    Args:
        rows: with the column `image` and those of the checkpoints' dense tasks, and perhaps `name`.
        baseline_rows: rows whose mean and median the constant predictions are.
        checkpoints: what is evaluated.
        settings: how.
        accelerator: the processes.

    Raises:
        RecipeError: a column is missing.
        EvaluationError: images that the crop does not fit, or a column that is two kinds of maps; a package is missing.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        baseline_rows: datasets.Dataset,
        checkpoints: Sequence[Checkpoint],
        settings: EvaluationSettings,
        accelerator: Accelerator,
    ) -> None:
        self.targets = _targets_by_column(checkpoints)
        kinds = {column: target.kind for column, target in self.targets.items()}
        self.rows, self.baseline_rows = DenseRows(rows, kinds), DenseRows(baseline_rows, kinds)
        self.settings = settings
        self.accelerator = accelerator
        self.names = _row_names(rows)
        self.crop = NYU_EVAL_CROP if settings.nyu_crop else None
        size = tuple(self.rows.image(0).shape[1:])
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
            self._processor(checkpoint)

    def contenders(self, checkpoint: Checkpoint) -> Iterator[tuple[str, Predict]]:
        """Ways to use a checkpoint, each with its name; each predicts all the checkpoint's tasks at once."""
        config, device = checkpoint.config, self.accelerator.device
        if isinstance(config, AiTVQVAEConfig):
            tokenizer = AiTVQVAEModel.from_pretrained(checkpoint.folder).eval().to(device)
            ((task, target),) = checkpoint.dense.items()
            yield "reconstruction of the truth", lambda indices: self._reconstruct(tokenizer, task, target, indices)
            return
        processor = self._processor(checkpoint)
        if isinstance(config, AiTPlainDenseConfig):
            plain = AiTPlainDenseModel.from_pretrained(checkpoint.folder).eval().to(device)
            yield "plain decoder", partial(self._predict, checkpoint.dense, processor, plain)
            return
        if isinstance(config, DenseDecoderConfig):
            (task,) = checkpoint.dense
            decoder = DenseDecoderModel.from_pretrained(checkpoint.folder).eval().to(device)
            yield "dense decoder", partial(self._predict, checkpoint.dense, processor, partial(decoded, decoder, task))
            return
        model = AiTForDenseAndInstancePrediction.from_pretrained(checkpoint.folder).eval().to(device)
        modes = [("parallel", {})] if config.parallel else token_modes(config, self.settings.soft_only)
        for label, switches in modes:
            generate = partial(model.generate, task=list(checkpoint.dense), **switches)
            yield label, partial(self._predict, checkpoint.dense, processor, generate)

    def constants(self, column: str) -> Iterator[tuple[str, Predict]]:
        """Predictions that know no image: mean, direction or class, and the median; see `constant_values`."""
        target = self.targets[column]
        values = constant_values(
            target.kind,
            target.channels,
            lambda index: self._truth(index, target, self.baseline_rows),
            len(self.baseline_rows),
            self.accelerator,
        )
        for label, of_channels in values.items():
            yield label, partial(self._everywhere, column, of_channels)

    def measure(self, predict: Predict, targets: Mapping[str, DenseTarget], name: str) -> dict[str, list[Any]]:
        """Every row's statistics (see `MapMetrics`) by task."""

        def statistics(indices: list[int]) -> list[dict[str, Any]]:
            return [
                {task: self._compare(maps[task], index, target) for task, target in targets.items()}
                for index, maps in zip(indices, predict(indices), strict=True)
            ]

        per_row = evaluate_in_batches(statistics, len(self.rows), self.settings.batch_size, self.accelerator, name)
        return {task: [row[task] for row in per_row] for task in targets}

    def write(
        self, predict: Predict, task: str, target: DenseTarget, statistics: Sequence[Any], folder: Path
    ) -> list[str]:
        """Write `per_image.csv` and, of the rows with the worst leading figure, `worst.png`; returns their names."""
        metrics = MAP_METRICS[target.kind.metric]
        per_row = [metrics.combine([entry]) for entry in statistics]
        with (folder / "per_image.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["row", "name", *metrics.names])
            writer.writeheader()
            for row, (name, figures) in enumerate(zip(self.names, per_row, strict=True)):
                writer.writerow({"row": row, "name": name, **figures})
        leading = [figures[metrics.leading] for figures in per_row]
        measured = [row for row, value in enumerate(leading) if not math.isnan(value)]
        sign = 1 if metrics.larger_is_better else -1
        worst = sorted(measured, key=lambda row: sign * leading[row])[: self.settings.panels]
        if not worst:
            return ["per_image.csv"]
        shown = []
        for row in worst:
            with torch.no_grad(), self.accelerator.autocast():
                found = predict([row])[0][task]
            truth = _cut(self._truth(row, target, self.rows), found)
            image = self.rows.image(row)[:, : truth.shape[-2], : truth.shape[-1]].permute(1, 2, 0).numpy()
            title = f"{self.names[row]}: {metrics.leading} {leading[row]:.3f}"
            shown.append(PanelRow(image, found, truth, title))
        dense_panel(shown, target.kind, folder / "worst.png", task, target.class_names)
        return ["per_image.csv", "worst.png"]

    def _compare(self, found: Tensor, index: int, target: DenseTarget) -> Any:
        truth = _cut(self._truth(index, target, self.rows), found)
        if self.crop is not None:
            top, bottom, left, right = self.crop
            found, truth = (maps[..., top:bottom, left:right] for maps in (found, truth))
        return MAP_METRICS[target.kind.metric].measure(found, truth, target.channels)

    def _truth(self, index: int, target: DenseTarget, rows: DenseRows) -> Tensor:
        """One true map in native form, without batch axis."""
        try:
            truth = rows.map(index, target.column)
            target.kind.check(truth[None], target.channels, f"{target.column!r} of row {index}")
        except (TypeError, ValueError) as error:
            raise EvaluationError(str(error)) from error
        return truth

    def _processor(self, checkpoint: Checkpoint) -> Any:
        return find_processor(checkpoint, AiTDenseImageProcessor, checkpoint.dense)

    def _predict(
        self, targets: Mapping[str, DenseTarget], processor: Any, model: Callable[[Tensor], Any], indices: list[int]
    ) -> list[dict[str, Tensor]]:
        """Windows and flips as the image processor defines them."""
        images = [self.rows.image(index) for index in indices]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        for index, size in zip(indices, sizes, strict=True):
            for task, target in targets.items():
                truth = tuple(self._truth(index, target, self.rows).shape[-2:])
                if size != truth:
                    raise EvaluationError(
                        f"Row {index} ({self.names[index]}) has an image of {size} and a {task} map of {truth}; both "
                        "must have one size."
                    )
        pixel_values = processor(images, return_tensors="pt")["pixel_values"].to(self.accelerator.device)
        results = processor.post_process_dense(model(pixel_values), sizes)
        return [{task: result[task].cpu() for task in targets} for result in results]

    def _reconstruct(
        self, tokenizer: AiTVQVAEModel, task: str, target: DenseTarget, indices: list[int]
    ) -> list[dict[str, Tensor]]:
        """True maps, cut at bottom and right to whole tokens, after encoding and decoding."""
        ratio, kind = tokenizer.config.downsample_ratio, target.kind
        truths = [self._truth(index, target, self.rows) for index in indices]
        truths = [x[..., : x.shape[-2] // ratio * ratio, : x.shape[-1] // ratio * ratio] for x in truths]
        stacked = len({truth.shape for truth in truths}) == 1
        found: list[dict[str, Tensor]] = []
        for batch in [torch.stack(truths)] if stacked else [truth[None] for truth in truths]:
            maps = tokenizer(kind.to_tokenizer(batch, target.channels).to(self.accelerator.device)).reconstruction
            found += [{task: kind.finish(single, None).cpu()} for single in kind.from_tokenizer(maps.float())]
        return found

    def _everywhere(self, column: str, values: Tensor, indices: list[int]) -> list[dict[str, Tensor]]:
        """Values (C,) in tokenizer form at every pixel."""
        kind, found = self.targets[column].kind, []
        for index in indices:
            size = self._truth(index, self.targets[column], self.rows).shape[-2:]
            constant = kind.from_tokenizer(values[None, :, None, None].expand(-1, -1, *size))[0]
            found.append({column: kind.finish(constant, None)})
        return found


def decoded(model: DenseDecoderModel, task: str, pixel_values: Tensor) -> AiTOutput:
    """Native maps of a dense decoder alone, images to codes to maps, in the form that image processors take.

    Args:
        model: the dense decoder, with its encoded mapping.
        task: name of its maps.
        pixel_values: (B, [views,] 3, S, S).
    """
    views, axes = flat_views(pixel_values)
    native = model.config.kind.from_tokenizer(model(views).maps.float()).unflatten(0, axes)
    return AiTOutput(dense_maps=DenseMaps({task: native}))


def mean_figures(task: str, target: DenseTarget, statistics: Sequence[Any]) -> dict[str, float]:
    """Figures of a task over all rows.

    Raises:
        EvaluationError: no row has a valid pixel.
    """
    figures = MAP_METRICS[target.kind.metric].combine(statistics)
    if all(math.isnan(value) for value in figures.values()):
        raise EvaluationError(
            f"No row has a valid true {task} (inside the crop) to measure; {target.column!r} must hold maps of kind "
            f"{target.kind.name!r}."
        )
    return figures


def token_modes(config: object, soft_only: bool) -> list[tuple[str, dict[str, bool]]]:
    """Names of the ways to decode step by step, and the arguments of `generate` for them.

    Args:
        config: the model's configuration.
        soft_only: leave out hard tokens of a model made for soft ones.
    """
    soft = getattr(config, "soft_feedback", False) or getattr(config, "soft_decode", False)
    if not soft:
        return [("autoregressive, hard tokens", {})]
    modes: list[tuple[str, dict[str, bool]]] = [("autoregressive, soft tokens", {})]
    return modes if soft_only else [*modes, ("autoregressive, hard tokens", dict(HARD))]


def _targets_by_column(checkpoints: Sequence[Checkpoint]) -> dict[str, DenseTarget]:
    """What each column holds; of classes as many as the largest model has."""
    found: dict[str, DenseTarget] = {}
    for target in [target for checkpoint in checkpoints for target in checkpoint.dense.values()]:
        other = found.setdefault(target.column, target)
        if other.kind is not target.kind:
            raise EvaluationError(
                f"the column {target.column!r} holds maps of kind {other.kind.name!r} for one checkpoint and "
                f"{target.kind.name!r} for another; evaluate them by two calls."
            )
        if target.channels > other.channels:
            found[target.column] = target
    return found


def _row_names(rows: datasets.Dataset) -> list[str]:
    """The column `name` or `index`, else row numbers."""
    for column in ("name", "index"):
        if column in rows.column_names:
            return [str(value) for value in rows[column]]
    return [str(row) for row in range(len(rows))]


def _cut(truth: Tensor, found: Tensor) -> Tensor:
    return truth[..., : found.shape[-2], : found.shape[-1]]
