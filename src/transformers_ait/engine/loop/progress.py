"""How far a run is."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...distributed_ait import mean_over_processes


class Progress:
    """How far a run is; part of every checkpoint.

    Attributes:
        step: optimiser steps done.
        sums: sums of logged values since the last log line, by name.
        count: updates in `sums`.
        metrics: of the last evaluation.
        batches: micro-batches that each process took from a stream.
        positions: by process and reader, where the stream's readers stand.
    """

    def __init__(self) -> None:
        self.step = 0
        self.batches = 0
        self.positions: list[dict[int, dict[str, int]]] = []
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.metrics: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one update."""
        self.step += 1
        self.count += 1
        self.sums = {name: self.sums.get(name, 0) + value.float() for name, value in values.items()}

    def synchronize(self) -> None:
        """Average the sums over processes, so that every process holds what the main process saves."""
        self.sums = {name: mean_over_processes(value) for name, value in self.sums.items()}

    def take_means(self) -> dict[str, float]:
        """Means since the last call."""
        self.synchronize()
        means = {name: (value / self.count).item() for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate's checkpoints."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """For Accelerate's checkpoints."""
        vars(self).update(state)
