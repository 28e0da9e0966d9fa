"""Timing: runs interleaved A B A B, medians, floating-point operations, and the matrix-product ceiling."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .setting import Setting

Run = Callable[[], Any]
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
TINY_PRODUCT_SIDE = 128


@dataclass
class Timed:
    """What a run returned when it was warmed up, and how long it took afterwards.

    Args:
        result: of the warm-up; None without one.
        seconds: of every round.
    """

    result: Any
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median of the rounds, seconds."""
        return statistics.median(self.seconds)


def interleave(name: str, runs: Mapping[str, Run], setting: Setting, warm_up: bool = True) -> dict[str, Timed]:
    """Warm up every run once, then time them in turn, `setting.rounds` times, so that a busy machine slows them alike.

    Args:
        name: for the progress bar.
        runs: by name; the order is the order of a round.
        setting: device and rounds.
        warm_up: False where the caller has run them before; there are no results then.

    Returns:
        The timings by the runs' names.
    """
    timed = {key: Timed(run() if warm_up else None, []) for key, run in runs.items()}
    for _ in tqdm(range(setting.rounds), desc=name, leave=False):
        for key, run in runs.items():
            timed[key].seconds.append(seconds(run, setting))
    return timed


def seconds(run: Run, setting: Setting) -> float:
    """Duration of one call until the device is done with it."""
    setting.synchronize()
    start = time.perf_counter()
    run()
    setting.synchronize()
    return time.perf_counter() - start


@dataclass
class Comparison:
    """Interleaved timings of two ways to compute one thing.

    Args:
        name: what is computed.
        reference: what ours is compared with.
        ours: this package.
        deviation: largest absolute difference of the results; None where they are not meant to agree.
        floor: the ratio that the project promises.
    """

    name: str
    reference: Timed
    ours: Timed
    deviation: float | None = None
    floor: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as fast as the reference, by medians."""
        return self.reference.median / self.ours.median

    def cells(self) -> list[str]:
        """Cells of the table row: name, both medians, ratio, floor, deviation."""
        deviation = "" if self.deviation is None else f"{self.deviation:.1e}"
        floor = "" if self.floor is None else f"{self.floor:g}x"
        times = (milliseconds(self.reference.median), milliseconds(self.ours.median))
        return [self.name, *times, f"{self.ratio:.2f}x", floor, deviation]


def compare(
    name: str, reference: Run, ours: Run, setting: Setting, floor: float | None = None, agree: bool = True
) -> Comparison:
    """Time two runs in turn and, where they should agree, compare the tensors that they return."""
    timed = interleave(name, {"reference": reference, "ours": ours}, setting)
    first, second = timed["reference"], timed["ours"]
    deviation = (first.result - second.result).abs().max().item() if agree else None
    comparison = Comparison(name, first, second, deviation, floor)
    print(" | ".join(comparison.cells()), flush=True)
    return comparison


def milliseconds(duration: float) -> str:
    """Seconds as readable milliseconds."""
    return f"{duration * 1000:.0f} ms" if duration >= 0.01 else f"{duration * 1000:.2f} ms"


def count_flops(run: Run) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of one call."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def matrix_product(setting: Setting) -> tuple[Run, int]:
    """A large square matrix product in the setting's dtype, whose rate is the ceiling, and its operations."""
    side = TINY_PRODUCT_SIDE if setting.tiny else PRODUCT_SIDE[setting.device.type]
    first, second = (torch.randn(side, side).to(setting.device, setting.dtype) for _ in range(2))
    out = torch.empty_like(first)
    return lambda: torch.mm(first, second, out=out), 2 * side**3
