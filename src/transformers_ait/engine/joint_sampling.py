"""How the images of two tasks share an optimiser step, at any number of processes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler

from .recipes import RecipeError
from .sampling import MicroBatchSampler, SampleKey


@dataclass(frozen=True)
class Mix:
    """What one optimiser step holds, over all processes.

    A step is a row of forward passes, those of depth first, of which every process takes every `processes`-th. A pass
    holds one task alone, so that all processes run equally many passes of the same modules, as wrapped models need.

    Args:
        instance_pass: images in a forward pass of instances.
        instance_passes: number of them.
        depth_pass: images in a forward pass of depth.
        depth_passes: number of them.
    """

    instance_pass: int
    instance_passes: int
    depth_pass: int
    depth_passes: int

    @property
    def passes(self) -> int:
        """Forward passes of all processes."""
        return self.instance_passes + self.depth_passes


def split_batch(batch_size: int, ratio: tuple[int, int]) -> tuple[int, int]:
    """Images of instances and of depth in a step.

    Args:
        batch_size: images per step.
        ratio: of instances and depth.

    Raises:
        RecipeError: the ratio does not come out.
    """
    unit = sum(ratio) // math.gcd(*ratio)
    if batch_size % unit:
        raise RecipeError(
            f"run.batch_size must be a multiple of {unit} for a mix of {ratio[0]} : {ratio[1]}, got {batch_size}; the "
            f"nearest is {max(round(batch_size / unit), 1) * unit}."
        )
    depth = batch_size // unit * (ratio[1] // math.gcd(*ratio))
    return batch_size - depth, depth


def plan_mix(batch_size: int, ratio: tuple[int, int], micro_batch: int, processes: int) -> Mix:
    """The fewest equal forward passes that hold a step and can be shared out equally.

    Among as few, images of depth stay together: their auxiliary loss is the root of one mean over a pass.

    Args:
        batch_size: images per step, over all processes.
        ratio: of instances and depth.
        micro_batch: images in a pass, at most.
        processes: number of processes.

    Raises:
        RecipeError: there is no such division.
    """
    mix = _find_mix(batch_size, ratio, micro_batch, processes)
    if mix is not None:
        return mix
    instance, depth = split_batch(batch_size, ratio)
    unit = sum(ratio) // math.gcd(*ratio)
    numbers = [n for n in range(1, batch_size + 1) if _find_mix(batch_size, ratio, micro_batch, n)]
    sizes = [size for size in range(unit, 64 * unit, unit) if _find_mix(size, ratio, micro_batch, processes)]
    nearest = sorted(sorted(sizes, key=lambda size: abs(size - batch_size))[:3])
    raise RecipeError(
        f"run.batch_size {batch_size}, {instance} images of instances and {depth} of depth, cannot be cut into equal "
        f"forward passes of at most {micro_batch} images for {processes} processes. It can for {numbers} processes"
        + (f"; for {processes}, set run.batch_size to one of {nearest}." if nearest else ".")
    )


def _find_mix(batch_size: int, ratio: tuple[int, int], micro_batch: int, processes: int) -> Mix | None:
    instance, depth = split_batch(batch_size, ratio)
    plans = [
        Mix(instance_pass, instance // instance_pass, depth_pass, depth // depth_pass)
        for depth_pass in _pass_sizes(depth, micro_batch)
        for instance_pass in _pass_sizes(instance, micro_batch)
    ]
    fitting = [plan for plan in plans if plan.passes % processes == 0]
    return min(fitting, key=lambda plan: (plan.passes, plan.depth_passes), default=None)


def _pass_sizes(images: int, limit: int) -> list[int]:
    return [size for size in range(1, min(images, limit) + 1) if images % size == 0]


class JointSampler(Sampler[list[SampleKey]]):
    """The forward passes of one process, step after step; rows of depth are numbered after those of instances.

    Which rows a step sees depends on the seed and the step alone. Each task is shuffled anew in its own epochs.

    Args:
        instance_rows: rows of training data with objects.
        depth_rows: rows of training data with depth.
        mix: what a step holds.
        seed: of the order.
        steps: range of the optimiser steps to run, counted from 0.
        rank: number of this process.
        processes: number of processes.
    """

    def __init__(
        self,
        instance_rows: int,
        depth_rows: int,
        mix: Mix,
        seed: int,
        steps: range,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.instance_rows = instance_rows
        self.depth_rows = depth_rows
        self.mix = mix
        self.seed = seed
        self.steps = steps
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return len(self.steps) * (self.mix.passes // self.processes)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        instance = self._passes(self.instance_rows, self.mix.instance_pass, self.mix.instance_passes)
        depth = self._passes(self.depth_rows, self.mix.depth_pass, self.mix.depth_passes)
        for _ in self.steps:
            passes = [
                [(epoch, self.instance_rows + row) for epoch, row in next(depth)] for _ in range(self.mix.depth_passes)
            ]
            passes += [next(instance) for _ in range(self.mix.instance_passes)]
            yield from passes[self.rank :: self.processes]

    def _passes(self, num_rows: int, size: int, count: int) -> Iterator[list[SampleKey]]:
        return iter(MicroBatchSampler(num_rows, self.seed, self.steps, size * count, size))
