"""Which tokens to keep (Hourglass Tokenizer, arXiv 2311.12028, section 3.2), and everything else at the kept ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_NEIGHBOURS = 2
"""Nearest tokens, the token itself among them, that make its density."""


class Pruned(NamedTuple):
    """What pruning did, for what recovers the tokens.

    Attributes:
        kept: (B, k) int64 numbers of the kept tokens, increasing.
        before: (B, N, ..., C) all tokens as they were before the first pruning.
        chosen: (B, k, ..., C) the kept ones, or what stands for their clusters, as they were then.
    """

    kept: Tensor
    before: Tensor
    chosen: Tensor


def gather_tokens(x: Tensor, index: Tensor, dims: Sequence[int] = (1,)) -> Tensor:
    """What belongs to tokens, at the kept ones.

    Args:
        x: any tensor with B or 1 as its first axis, such as tokens (B, N, C), a mask (B, 1, N, N), a position bias
            (1, heads, N, N); or without a batch axis where a negative axis of `dims` is counted before it.
        index: (B, k) int64.
        dims: axes that run over tokens; one of length 1 is broadcast and stays.

    Returns:
        x with length k at `dims`, and B as its first axis.
    """
    dims = [dim % x.ndim for dim in dims]
    if 0 in dims:  # no batch axis
        x, dims = x[None], [dim + 1 for dim in dims]
    for dim in dims:
        if x.shape[dim] > 1:
            shape = [1] * x.ndim
            shape[0], shape[dim] = index.shape
            x = torch.take_along_dim(x, index.view(shape), dim)
    return x


def _check_count(num_kept: int, num_tokens: int, always: int | None) -> None:
    if not 1 <= num_kept <= num_tokens:
        raise ValueError(
            f"num_kept must lie in 1..{num_tokens}, the number of tokens, got {num_kept}: keep fewer, or give more."
        )
    if always is not None and not 0 <= always < num_tokens:
        raise ValueError(f"always must be the number of a token, 0..{num_tokens - 1}, or None, got {always}.")


@torch.no_grad()
def select_by_density(
    tokens: Tensor, num_kept: int, always: int | Tensor | None = None, num_neighbours: int = NUM_NEIGHBOURS
) -> Tensor:
    """Token pruning cluster: density peaks that are far from denser tokens (section 3.2, after DPC-kNN).

    The same input gives the same choice: where scores are equal, the lower number is kept (the reference draws lots).

    Args:
        tokens: (B, N, C).
        num_kept: k, how many to keep.
        always: number of a token that is kept in any case, as the middle frame of sequence-to-frame models, or (B,)
            int64 numbers of one per sample; its score is taken out of the choice of the others.
        num_neighbours: how many nearest tokens, itself included, make a token's density.

    Returns:
        (B, k) int64, increasing.

    Raises:
        ValueError: k is not in 1..N, or `always` or `num_neighbours` are not.
    """
    num_tokens = tokens.shape[1]
    _check_count(num_kept, num_tokens, None if isinstance(always, Tensor) else always)
    _check_count(num_neighbours, num_tokens, None)
    x = tokens.float()
    distances = torch.cdist(x, x) / x.shape[-1] ** 0.5
    density = distances.topk(num_neighbours, largest=False).values.square().mean(-1).neg().exp()
    denser = density[:, None, :] > density[:, :, None]
    largest = distances.flatten(1).amax(1)[:, None, None]
    score = density * torch.where(denser, distances, largest).amin(-1)
    return _best(score, num_kept, always)


def _best(score: Tensor, num_kept: int, always: int | Tensor | None) -> Tensor:
    """Numbers (B, k) of the highest scores (B, N), increasing, with `always` among them."""
    if always is not None:
        place = torch.as_tensor(always, device=score.device).expand(len(score))[:, None]
        score = score.scatter(1, place, torch.inf)
    return score.sort(dim=1, descending=True, stable=True).indices[:, :num_kept].sort(dim=1).values


@torch.no_grad()
def select_uniform(tokens: Tensor, num_kept: int, always: int | None = None) -> Tensor:
    """Evenly spaced tokens, the first and the last among them where there are two or more.

    Args:
        tokens: (B, N, C); only the sizes matter.
        num_kept: k, how many to keep.
        always: number of a token that is kept in any case; it takes the place of the nearest other.

    Returns:
        (B, k) int64, increasing.

    Raises:
        ValueError: k is not in 1..N, or `always` is no token.
    """
    batch, num_tokens = tokens.shape[:2]
    _check_count(num_kept, num_tokens, always)
    last, gaps = num_tokens - 1, max(num_kept - 1, 1)
    places = [(2 * place * last + gaps) // (2 * gaps) for place in range(num_kept)]
    if always is not None:
        nearest = min(range(num_kept), key=lambda place: abs(places[place] - always))
        places[nearest] = always
    return torch.tensor(places, device=tokens.device).expand(batch, -1)


def cells_of(grid: Sequence[int], cells: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Number of the cell that every position of a grid lies in, (N,) int64, both in row-major order.

    Args:
        grid: lengths of the grid, such as (height, width) or (frames,).
        cells: into how many cells each is cut.
        device: of the result.

    Raises:
        ValueError: more cells than positions along an axis, or another number of axes.
    """
    if len(grid) != len(cells) or not all(1 <= count <= length for count, length in zip(cells, grid, strict=True)):
        raise ValueError(f"cells must be one number in 1..length per axis of the grid {tuple(grid)}, got {cells!r}.")
    number = torch.zeros((), dtype=torch.long, device=device)
    for length, count in zip(grid, cells, strict=True):
        number = number[..., None] * count + torch.arange(length, device=device) * count // length
    return number.flatten()


def _cell_means(tokens: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Mean token (B, cells, C) of every cell."""
    members = F.one_hot(cell, num_cells).to(tokens.dtype)
    return (members / members.sum(0)).T @ tokens


@torch.no_grad()
def select_by_cell(tokens: Tensor, grid: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Of every cell of a grid the token that is nearest to the cell's mean, the lower number where two are.

    Args:
        tokens: (B, N, C), N positions of the grid in row-major order.
        grid: lengths of the grid, (height, width) of an image or (frames,) of a video.
        cells: into how many cells each is cut; as many tokens are kept.

    Returns:
        (B, k) int64, increasing.

    Raises:
        ValueError: the grid has not N positions, or the cells do not fit it.
    """
    cell = _checked_cells(tokens, grid, cells)
    x, num_cells = tokens.float(), int(cell.max()) + 1
    distance = (x - _cell_means(x, cell, num_cells)[:, cell]).square().sum(-1)
    order = distance.sort(dim=1, stable=True).indices  # the first of a cell in this order is its nearest
    own = F.one_hot(cell[order], num_cells)
    first = own.cumsum(1).mul(own).eq(1).int().argmax(1)
    return order.gather(1, first).sort(dim=1).values


def _checked_cells(tokens: Tensor, grid: Sequence[int], cells: Sequence[int]) -> Tensor:
    cell = cells_of(grid, cells, tokens.device)
    if len(cell) != tokens.shape[1]:
        raise ValueError(f"grid {tuple(grid)} has {len(cell)} positions, but there are {tokens.shape[1]} tokens.")
    return cell


@torch.no_grad()
def cluster_centroids(
    tokens: Tensor, grid: Sequence[int], cells: Sequence[int], num_iterations: int = 3, sharpness: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Centroids that stand for all tokens, refined from a coarse grid by soft assignment to the cells around.

    Every token belongs to the centroids of its own cell and of those next to it, by a softmax over the negative squared
    distances, divided by C and by their mean over the image (token clustering of arXiv 2210.01035).

    Args:
        tokens: (B, N, C), N positions of the grid in row-major order.
        grid: lengths of the grid, (height, width) of an image or (frames,) of a video.
        cells: into how many cells each is cut; as many centroids come.
        num_iterations: how often tokens are assigned and centroids renewed.
        sharpness: factor on the distances in the softmax.

    Returns:
        Centroids (B, k, C), and for each the number of the token at the middle of its cell, (B, k) int64, increasing.

    Raises:
        ValueError: the grid has not N positions, or the cells do not fit it.
    """
    cell = _checked_cells(tokens, grid, cells)
    x, num_cells = tokens.float(), int(cell.max()) + 1
    centroids = _cell_means(x, cell, num_cells)
    hidden = ~_next_to_each_other(cells, tokens.device)[cell]
    for _ in range(num_iterations):
        distances = torch.cdist(x, centroids).square()
        scale = distances.masked_fill(hidden, 0).sum((1, 2), keepdim=True) / (~hidden).sum()
        logits = -sharpness * distances / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        share = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        centroids = (share / share.sum(1, keepdim=True)).transpose(1, 2) @ x
    middle = select_by_cell(grid_coordinates(grid, tokens.device).expand(1, -1, -1), grid, cells)
    return centroids.to(tokens.dtype), middle.expand(len(tokens), -1)


def grid_coordinates(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Position of every token of a grid, (N, axes) float32, in row-major order.

    Args:
        grid: its lengths.
        device: of the result.
    """
    axes = torch.meshgrid(*(torch.arange(length, device=device) for length in grid), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], -1).float()


def _next_to_each_other(cells: Sequence[int], device: torch.device) -> Tensor:
    """(k, k) bool, whether two cells are the same or touch."""
    places = grid_coordinates(cells, device)
    return (places[:, None] - places[None]).abs().amax(-1) <= 1
