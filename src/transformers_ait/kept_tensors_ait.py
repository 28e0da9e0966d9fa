"""Tensors computed from weights alone, kept until the weights change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight as it was. The detached tensor keeps its memory taken, so that no other weight gets the same address."""

    weight: Tensor
    memory: Tensor
    address: int
    version: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, weight: Tensor) -> "_Weight":
        return cls(weight, weight.detach(), weight.data_ptr(), weight._version, weight.dtype, weight.device)

    def unchanged(self, weight: Tensor) -> bool:
        return (
            weight is self.weight
            and weight.data_ptr() == self.address
            and weight._version == self.version
            and weight.dtype == self.dtype
            and weight.device == self.device
        )


class KeptTensors:
    """Tensors that depend on weights alone, computed once.

    In-place writes to `weight.data` leave no trace to notice: call `forget` wherever they may have happened. Threads
    may share one; at worst both compute a tensor. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._entry: tuple[object, list[_Weight], dict[object, Tensor]] | None = None

    def get(self, policy: object, role: object, weights: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, or what it gave before.

        Args:
            policy: what is to be kept at all; another one drops everything.
            role: which of the kept tensors is meant.
            weights: what `compute` reads.
            compute: takes nothing, returns the tensor.
        """
        entry = self._entry
        if entry is None or entry[0] != policy or not all(map(_Weight.unchanged, entry[1], weights)):
            entry = (policy, [_Weight.of(weight) for weight in weights], {})
            self._entry = entry
        if role not in entry[2]:
            entry[2][role] = compute().detach()
        return entry[2][role]

    def forget(self) -> None:
        """Drop everything."""
        self._entry = None

    @property
    def nbytes(self) -> int:
        """Bytes of the kept tensors."""
        return 0 if self._entry is None else sum(tensor.nbytes for tensor in self._entry[2].values())

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()
