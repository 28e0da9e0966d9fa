"""Constant predictions of a kind of map, as something to compare models with."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from ...map_kinds_ait import MapKind
from .inputs import EvaluationError

RESOLUTION = 1000  # a median is one to a thousandth; of depth in millimetres exactly


def constant_values(
    kind: MapKind, channels: int, truth: Callable[[int], Tensor], count: int, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Values (C,) in tokenizer form by name: the mean of all valid pixels, and of values on one scale their median.

    Finished by the kind, the mean is the mean direction of normals and the most frequent one of classes.

    Args:
        kind: what the maps' values mean.
        channels: of the tokenizer form.
        truth: row number to one native map.
        count: of rows.
        accelerator: the processes, which share the rows.

    Raises:
        EvaluationError: no valid pixel.
    """
    total, pixels = torch.zeros(channels, dtype=torch.float64), 0
    levels: list[Counter[int]] = [Counter() for _ in range(channels if kind.colors == "sequential" else 0)]
    mine = range(count)[accelerator.process_index :: accelerator.num_processes]
    for index in tqdm(mine, desc="constants", leave=False, disable=not accelerator.is_main_process):
        maps = kind.to_tokenizer(truth(index)[None], channels)
        values = maps[0][:, kind.valid(maps)[0, 0]].double()
        total += values.sum(dim=1)
        pixels += values.shape[1]
        for counter, channel in zip(levels, values, strict=False):
            found, counts = np.unique((channel * RESOLUTION).round().long().numpy(), return_counts=True)
            counter.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    shares = gather_object([(total, pixels, levels)])
    pixels = sum(share[1] for share in shares)
    if not pixels:
        raise EvaluationError(f"No row has a valid true value; the column must hold maps of kind {kind.name!r}.")
    constants = {"constant": (sum(share[0] for share in shares) / pixels).float()}
    if levels:
        medians = [_median(sum(counters, Counter())) for counters in zip(*(share[2] for share in shares), strict=True)]
        constants["constant, median"] = torch.tensor(medians)
    return constants


def _median(levels: Counter[int]) -> float:
    """Median of counted levels, of two middle values the mean."""
    values = np.array(sorted(levels))
    below = np.array([levels[value] for value in values.tolist()]).cumsum()
    middle = [values[np.searchsorted(below, rank, side="right")] for rank in ((below[-1] - 1) // 2, below[-1] // 2)]
    return float(sum(middle)) / (2 * RESOLUTION)
