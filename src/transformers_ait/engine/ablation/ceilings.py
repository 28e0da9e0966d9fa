"""What a task-solver that predicts every token right would reach: the truth through its own tokenizer."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...metrics import MAP_METRICS
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ...modeling_ait_vqvae import AiTVQVAEModel
from ..evaluation.inputs import EvaluationError, EvaluationSettings, load_rows
from ..evaluation.report import run_evaluation
from ..tasks.dense_data import DenseRows


def tokenizer_figures(folder: Path, task: str | None, data: dict[str, Any]) -> dict[str, float]:
    """Figures of the tokenizer inside a task-solver.

    Args:
        folder: of the task-solver.
        task: whose tokenizer; None is that of the default task.
        data: fields of `EvaluationSettings`.

    Raises:
        EvaluationError: the data cannot be loaded, or the tokenizer is a dense decoder, which takes no maps.
    """
    model: Any = AiTForDenseAndInstancePrediction.from_pretrained(folder).eval()
    task = task or model.config.default_task or model.config.tasks[0]
    tokenizer = model.tokenizer(task)
    if tokenizer.config.encodes_images:
        raise EvaluationError(
            f"The tokenizer of {task!r} is a dense decoder, which reads images: it reconstructs no truth. Measure the "
            "dense decoder itself (`evaluate` of a variant), or leave `ceiling` out."
        )
    if not isinstance(tokenizer, AiTVQVAEModel):
        return _bin_figures(tokenizer, task, EvaluationSettings([], **data))
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        return run_evaluation(EvaluationSettings([place], panels=0, **data))[0].metrics


@torch.no_grad()
def _bin_figures(tokenizer: Any, task: str, settings: EvaluationSettings) -> dict[str, float]:
    """Figures of bins, whose folder `evaluate.py` does not take; maps are cut at bottom and right to whole bins."""
    kind, ratio, channels = tokenizer.config.kind, tokenizer.config.downsample_ratio, tokenizer.config.num_channels
    column, metrics = settings.columns.get(task, task), MAP_METRICS[kind.metric]
    rows = DenseRows(load_rows(settings, settings.split, settings.limit), {column: kind})

    def statistics(index: int) -> Any:
        truth: Tensor = rows.map(index, column)
        truth = truth[..., : truth.shape[-2] // ratio * ratio, : truth.shape[-1] // ratio * ratio]
        found = tokenizer(kind.to_tokenizer(truth[None], channels)).reconstruction
        return metrics.measure(kind.finish(kind.from_tokenizer(found.float())[0], None), truth, channels)

    return metrics.combine([statistics(index) for index in range(len(rows))])
