"""Fewer tokens in the middle of a list of blocks (Hourglass Tokenizer, arXiv 2311.12028; H2OT, arXiv 2509.06956)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .token_pruning import (
    Pruned,
    cluster_centroids,
    gather_tokens,
    select_by_cell,
    select_by_density,
    select_uniform,
)

SELECTIONS = ("density", "uniform", "cell", "centroid")
"""Density peaks, evenly spaced ones, one of each cell of a grid, or centroids of soft clusters in place of tokens."""

PerToken = Mapping[str, tuple[Tensor | None, Sequence[int]]]
"""Keyword argument of the blocks to its tensor and the axes of it that run over tokens."""


class Hourglass(nn.Module):
    """Prunes the tokens that run through a list of blocks, before one or several of them.

    It owns no block: `forward` takes any callables. What recovers the tokens afterwards is a callable of
    `token_recovery`, or a `TokenRecoveringAttention`.

    Args:
        before: numbers of the blocks, counted from 0, that tokens are pruned before, increasing.
        kept: how many tokens are left from there on, decreasing; for a selection by cell or centroid the cells along
            each axis of the grid.
        selection: one of `SELECTIONS`; a pyramid of several prunings takes "density" or "uniform".
        grid: lengths of the grid that the tokens lie on, which "cell" and "centroid" need.
        always: number of a token that is kept in any case, such as the middle frame; of "density" and "uniform".
        num_prefix: leading tokens that are kept and take no part in the choice, such as a class token.
        table_size: C of a learned table of positions, zeros at first, that is added to the tokens after each pruning;
            None has none.

    Raises:
        ValueError: what was given does not go together.
    """

    def __init__(
        self,
        before: Sequence[int],
        kept: Sequence[int | Sequence[int]],
        selection: str = "density",
        grid: Sequence[int] | None = None,
        always: int | None = None,
        num_prefix: int = 0,
        table_size: int | None = None,
    ):
        super().__init__()
        _check_settings(before, kept, selection, grid, always)
        self.before = tuple(before)
        self.kept = tuple(kept)
        self.selection = selection
        self.grid = None if grid is None else tuple(grid)
        self.always = always
        self.num_prefix = num_prefix
        sizes = [] if table_size is None else [(num_prefix + _number(count), table_size) for count in kept]
        self.tables = nn.ParameterList(torch.zeros(1, *size) for size in sizes)

    def forward(
        self, x: Tensor, blocks: Sequence[Callable[..., Tensor]], per_token: PerToken | None = None, **kwargs: Any
    ) -> tuple[Tensor, Pruned]:
        """Run the blocks.

        Args:
            x: tokens (B, N, C), or (B, T, J, C), whose frames are pruned by their mean over the joints.
            blocks: callables from tokens to tokens of the same shape; a tuple's first element counts.
            per_token: keyword arguments of the blocks that belong to tokens, which are gathered at the kept ones.
            kwargs: other keyword arguments of the blocks.

        Returns:
            The kept tokens (B, k, C) or (B, k, J, C), and what pruning did.

        Raises:
            ValueError: there are not as many blocks or tokens as the settings need.
        """
        if self.before[-1] >= len(blocks):
            raise ValueError(f"tokens are pruned before block {self.before[-1]}, but there are {len(blocks)} blocks.")
        per_token = {name: value for name, value in (per_token or {}).items() if value[0] is not None}
        pruned = None
        for number, block in enumerate(blocks):
            if number in self.before:
                x, pruned = self._prune(x, self.before.index(number), pruned)
            gathered = {name: self._at_kept(value, pruned) for name, value in per_token.items()}
            x = block(x, **gathered, **kwargs)
            x = x[0] if isinstance(x, tuple) else x
        assert pruned is not None
        return x, pruned

    def extra_repr(self) -> str:
        """The settings."""
        return f"before={self.before}, kept={self.kept}, selection={self.selection!r}"

    def _at_kept(self, value: tuple[Tensor | None, Sequence[int]], pruned: Pruned | None) -> Tensor | None:
        tensor, dims = value
        return tensor if pruned is None or tensor is None else gather_tokens(tensor, pruned.kept, dims)

    def _prune(self, x: Tensor, step: int, earlier: Pruned | None) -> tuple[Tensor, Pruned]:
        features = (x.flatten(2, -2).mean(2) if x.ndim > 3 else x)[:, self.num_prefix :]
        always: int | Tensor | None = self.always
        if earlier is not None and always is not None:  # where it stands among those that are left of each sample
            always = (earlier.kept == always + self.num_prefix).int().argmax(1) - self.num_prefix
        index, centroids = self._select(features, self.kept[step], always)
        prefix = torch.arange(self.num_prefix, device=x.device).expand(len(x), -1)
        index = torch.cat([prefix, index + self.num_prefix], dim=1)
        kept = gather_tokens(x, index) if centroids is None else torch.cat([x[:, : self.num_prefix], centroids], 1)
        if earlier is None:
            pruned = Pruned(index, x, kept)
        else:
            pruned = Pruned(earlier.kept.gather(1, index), earlier.before, gather_tokens(earlier.chosen, index))
        if len(self.tables):
            table = self.tables[step]
            kept = kept + table.view(1, table.shape[1], *[1] * (x.ndim - 3), table.shape[2])
        return kept, pruned

    def _select(self, features: Tensor, kept: Any, always: int | Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Numbers of the kept tokens, and centroids where those take their place."""
        if self.selection == "density":
            return select_by_density(features, kept, always), None
        if self.selection == "uniform":
            # Even places are the same in all samples, and so is that of the wanted token among them.
            place = int(always[0]) if isinstance(always, Tensor) else always
            return select_uniform(features, kept, place), None
        if self.selection == "cell":
            return select_by_cell(features, self.grid or (), kept), None
        centroids, middle = cluster_centroids(features, self.grid or (), kept)
        return middle, centroids


def _number(count: int | Sequence[int]) -> int:
    """How many tokens are kept."""
    return count if isinstance(count, int) else int(torch.tensor(count).prod())


def _check_settings(
    before: Sequence[int],
    kept: Sequence[int | Sequence[int]],
    selection: str,
    grid: Sequence[int] | None,
    always: int | None,
) -> None:
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {SELECTIONS}, got {selection!r}.")
    if not before or len(before) != len(kept) or sorted({*before}) != [*before] or before[0] < 0:
        raise ValueError(f"before must be increasing numbers of blocks, one per entry of kept {kept}, got {before}.")
    if selection in ("density", "uniform"):
        counts = [count for count in kept if isinstance(count, int) and count > 0]
        if sorted({*counts}, reverse=True) != [*kept]:
            raise ValueError(f"kept must be decreasing numbers of tokens, 1 or more, got {kept}.")
        return
    if always is not None:
        raise ValueError(
            f"always={always} suits the selections 'density' and 'uniform'; leave it out of {selection!r}."
        )
    if len(kept) > 1 or grid is None or isinstance(kept[0], int):
        raise ValueError(
            f"selection {selection!r} prunes once, needs the grid of the tokens, and as kept the cells along its axes, "
            f"such as [[15, 15]]; got before {before}, grid {grid}, kept {kept}."
        )
