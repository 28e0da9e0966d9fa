"""How the images of several groups of tasks share an optimiser step, at any number of processes."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from ..loop.sampling import MicroBatchSampler, SampleKey
from ..recipes.reading import RecipeError


@dataclass(frozen=True)
class Mix:
    """What one optimiser step holds, over all processes.

    A step is a row of forward passes, those of the last group first, of which every process takes every `processes`-th.
    A pass holds one group of tasks alone, so that all processes run equally many passes of the same modules, as wrapped
    models need.

    Args:
        sizes: images in a forward pass of each group.
        counts: number of forward passes of each group.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def passes(self) -> int:
        """Forward passes of all processes."""
        return sum(self.counts)

    @property
    def images(self) -> tuple[int, ...]:
        """Images of each group."""
        return tuple(size * count for size, count in zip(self.sizes, self.counts, strict=True))


def split_batch(batch_size: int, ratio: Mapping[str, int]) -> tuple[int, ...]:
    """Images of each group in a step.

    Args:
        batch_size: images per step.
        ratio: of the groups by name.

    Raises:
        RecipeError: the ratio does not come out.
    """
    unit = _smallest_batch(ratio)
    if batch_size % unit:
        raise RecipeError(
            f"run.batch_size must be a multiple of {unit} for a mix of {' : '.join(map(str, ratio.values()))}, got "
            f"{batch_size}; the nearest is {max(round(batch_size / unit), 1) * unit}."
        )
    return tuple(images * batch_size // sum(ratio.values()) for images in ratio.values())


def plan_mix(batch_size: int, ratio: Mapping[str, int], micro_batch: int, processes: int) -> Mix:
    """The fewest equal forward passes that hold a step and can be shared out equally.

    Among as few, images of the last group stay together: the auxiliary loss of depth is the root of one mean over a
    pass.

    Args:
        batch_size: images per step, over all processes.
        ratio: of the groups by name, that of dense tasks last.
        micro_batch: images in a pass, at most.
        processes: number of processes.

    Raises:
        RecipeError: there is no such division.
    """
    mix = _find_mix(batch_size, ratio, micro_batch, processes)
    if mix is not None:
        return mix
    images = [f"{count} of {name}" for name, count in zip(ratio, split_batch(batch_size, ratio), strict=True)]
    unit = _smallest_batch(ratio)
    numbers = [n for n in range(1, batch_size + 1) if _find_mix(batch_size, ratio, micro_batch, n)]
    sizes = [size for size in range(unit, 64 * unit, unit) if _find_mix(size, ratio, micro_batch, processes)]
    nearest = sorted(sorted(sizes, key=lambda size: abs(size - batch_size))[:3])
    raise RecipeError(
        f"run.batch_size {batch_size}, images: {', '.join(images)}, cannot be cut into equal forward passes of at most "
        f"{micro_batch} images for {processes} processes. It can for {numbers} processes"
        + (f"; for {processes}, set run.batch_size to one of {nearest}." if nearest else ".")
    )


def _smallest_batch(ratio: Mapping[str, int]) -> int:
    return sum(ratio.values()) // math.gcd(*ratio.values())


def _find_mix(batch_size: int, ratio: Mapping[str, int], micro_batch: int, processes: int) -> Mix | None:
    images = split_batch(batch_size, ratio)
    choices = itertools.product(*(_pass_sizes(count, micro_batch) for count in images))
    plans = [Mix(sizes, tuple(x // size for x, size in zip(images, sizes, strict=True))) for sizes in choices]
    fitting = [plan for plan in plans if plan.passes % processes == 0]
    return min(fitting, key=lambda plan: (plan.passes, plan.counts[::-1]), default=None)


def _pass_sizes(images: int, limit: int) -> list[int]:
    return [size for size in range(1, min(images, limit) + 1) if images % size == 0]


class JointSampler(Sampler[list[SampleKey]]):
    """The forward passes of one process, step after step; the rows of each group are numbered after those before it.

    Which rows a step sees depends on the seed and the step alone. Each group is shuffled anew in its own epochs.

    Args:
        rows: number of training rows of each group.
        mix: what a step holds.
        seed: of the order.
        steps: range of the optimiser steps to run, counted from 0.
        rank: number of this process.
        processes: number of processes.
    """

    def __init__(
        self, rows: Sequence[int], mix: Mix, seed: int, steps: range, rank: int = 0, processes: int = 1
    ) -> None:
        self.rows = tuple(rows)
        self.mix = mix
        self.seed = seed
        self.steps = steps
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return len(self.steps) * (self.mix.passes // self.processes)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        groups = [self._passes(group) for group in range(len(self.rows))]
        order = (len(groups) - 1, *range(len(groups) - 1))
        for _ in self.steps:
            passes = [next(groups[group]) for group in order for _ in range(self.mix.counts[group])]
            yield from passes[self.rank :: self.processes]

    def _passes(self, group: int) -> Iterator[list[SampleKey]]:
        size, first = self.mix.sizes[group], sum(self.rows[:group])
        sampler = MicroBatchSampler(self.rows[group], self.seed, self.steps, self.mix.images[group], size)
        for keys in sampler:
            yield [(epoch, first + row) for epoch, row in keys]
