"""Data order and augmentation randomness as functions of the seed and the step, so that a resumed run repeats them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

Sample = dict[str, Any]
"""One training sample, or a batch of them: mostly tensors, and lists where samples differ in shape."""
SampleKey = tuple[int, int]
"""(epoch, index of the row)."""


class MicroBatchSampler(Sampler[list[SampleKey]]):
    """The micro-batches of one process, step after step.

    Rows are shuffled anew every epoch, and batches run on over the end of an epoch. Which rows a step sees does not
    depend on the number of processes or micro-batches.

    Args:
        num_rows: rows of the training data.
        seed: of the order.
        steps: range of the optimiser steps to run, counted from 0.
        batch_size: rows per optimiser step, over all processes.
        micro_batch: rows per micro-batch and process; `processes * micro_batch` divides `batch_size`.
        rank: number of this process.
        processes: number of processes.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        steps: range,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.steps = steps
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return len(self.steps) * (self.batch_size // (self.micro_batch * self.processes))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            first = step * self.batch_size + self.rank * self.micro_batch
            for start in range(first, (step + 1) * self.batch_size, self.micro_batch * self.processes):
                keys = []
                for position in range(start, start + self.micro_batch):
                    if position // self.num_rows != epoch:
                        epoch = position // self.num_rows
                        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
                    keys.append((epoch, int(order[position % self.num_rows])))
                yield keys


class SeededSamples(Dataset[Sample]):
    """Training samples whose randomness depends on (seed, epoch, row) alone, not on workers or earlier samples.

    Args:
        make_sample: row index to sample; draws from torch's default generator.
        seed: of the augmentation.
    """

    def __init__(self, make_sample: Callable[[int], Sample], seed: int) -> None:
        self.make_sample = make_sample
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        seed = sample_seed(self.seed, epoch, index)
        # The generator of the processor alone: `torch.manual_seed` would disturb dropout on accelerators.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.make_sample(index)


def sample_seed(*numbers: int) -> int:
    """Seed in [0, 2^63) of a sample, from the run's seed and the sample's key."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def process_share(count: int, rank: int, processes: int) -> list[int]:
    """Rows of `count` that process `rank` evaluates, every `processes`-th.

    Every process gets equally many, as wrapped models may communicate in each call; the last row fills up.
    """
    return [min(rank + turn * processes, count - 1) for turn in range(-(-count // processes))]
