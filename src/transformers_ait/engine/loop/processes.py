"""How processes and forward passes share the batch of an optimiser step, and how many steps there are."""

import math

import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils import GradientAccumulationPlugin

from ..recipes.reading import RecipeError
from ..recipes.sections import RunRecipe

logger = get_logger(__name__)


def count_processes() -> int:
    """Number of processes that were launched together."""
    # Without this, processes that torchrun starts on CPUs do not find each other.
    return PartialState(cpu=not torch.accelerator.is_available()).num_processes


def micro_batch_size(run: RunRecipe, processes: int) -> int:
    """Samples per forward pass: as the recipe says, else an equal share of the batch on as many processes as it names.

    Args:
        run: the recipe.
        processes: number of processes there are.
    """
    return run.micro_batch or max(run.batch_size // max(processes, run.processes or 1), 1)


def accumulation_steps(run: RunRecipe, processes: int) -> int:
    """Forward passes of each process per optimiser step.

    Raises:
        RecipeError: the batch size cannot be shared out equally.
    """
    micro_batch = micro_batch_size(run, processes)
    if run.batch_size % (micro_batch * processes) == 0:
        return run.batch_size // (micro_batch * processes)
    share, rest = divmod(run.batch_size, processes)
    fitting = [size for size in range(1, share + 1) if share % size == 0 and not rest]
    fix = f"set run.micro_batch to one of {fitting}" if fitting else f"start a divisor of {run.batch_size} processes"
    meant = f" (the recipe is meant for {run.processes})" if run.processes else ""
    raise RecipeError(
        f"run.batch_size must be a multiple of run.micro_batch x processes ({micro_batch} x {processes}){meant}, got "
        f"{run.batch_size}; {fix}, or change run.batch_size."
    )


def make_accelerator(run: RunRecipe, accumulation: int | None = None) -> Accelerator:
    """Accelerator that accumulates as many micro-batches as the recipe's batch size asks for.

    Args:
        run: the recipe.
        accumulation: forward passes of each process per optimiser step; None is `accumulation_steps`.

    Raises:
        RecipeError: the batch size cannot be shared out equally.
    """
    processes = count_processes()
    accumulation = accumulation or accumulation_steps(run, processes)
    if run.processes is not None and processes < run.processes:
        logger.warning(
            f"The recipe is meant for {run.processes} processes; on {processes}, each accumulates gradients over "
            f"{accumulation} forward passes per step."
        )
    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=run.mixed_precision,
        gradient_accumulation_plugin=plugin,
        step_scheduler_with_optimizer=False,
    )


def number_of_steps(run: RunRecipe, num_rows: int) -> int:
    """Optimiser steps of a run, from its steps or epochs.

    Raises:
        RecipeError: epochs of a stream.
    """
    if run.steps is None and num_rows == 0:
        raise RecipeError("run.epochs needs training data of known length, which streams have not; give run.steps.")
    return run.steps if run.steps is not None else math.ceil((run.epochs or 0) * num_rows / run.batch_size)
