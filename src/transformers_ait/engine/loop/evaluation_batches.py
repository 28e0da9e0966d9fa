"""How processes share the rows of an evaluation."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from .sampling import process_share

Result = TypeVar("Result")


def evaluate_in_batches(
    evaluate: Callable[[list[int]], list[Result]],
    count: int,
    batch_size: int,
    accelerator: Accelerator,
    name: str = "evaluation",
) -> list[Result]:
    """Results of all rows in their order, the same in every process.

    Whole batches are shared out, so every row is computed in the same company, and to the same bits, by any number of
    processes. All processes call `evaluate` equally often, as wrapped models may communicate in each call.

    Args:
        evaluate: row numbers to one result each.
        count: number of rows; rows 0 .. count - 1 are evaluated.
        batch_size: rows per call of `evaluate`.
        accelerator: the processes.
        name: for the progress bar.
    """
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    mine = process_share(len(batches), accelerator.process_index, accelerator.num_processes)
    results: dict[int, Result] = {}
    for number in tqdm(mine, desc=name, leave=False, disable=not accelerator.is_main_process):
        with torch.no_grad(), accelerator.autocast():
            results.update(zip(batches[number], evaluate(batches[number]), strict=True))
    gathered = dict(gather_object(list(results.items())))
    return [gathered[index] for index in range(count)]
