"""All tokens from the kept ones: attention, interpolation, nearest, similarity (arXiv 2311.12028, 2210.01035)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .token_pruning import Pruned, grid_coordinates


class TokenRecoveringAttention(nn.Module):
    """Learned queries, one per token, attend to the kept tokens: `q + attention(q, kept, kept)` (section 3.3).

    Args:
        hidden_size: C.
        num_heads: of the attention.
        num_tokens: N, how many tokens come out.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_tokens: int):
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.zeros(1, num_tokens, hidden_size))
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.projection = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tensor, pruned: Pruned | None = None) -> Tensor:
        """Tokens (B, k, C) or (B, k, J, C) to (B, N, C) or (B, N, J, C); joints do not see each other.

        `pruned` is not needed; the other ways of recovery are called with it.
        """
        if tokens.ndim == 4:
            joints = tokens.shape[2]
            return self(tokens.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, joints)).transpose(1, 2)
        # The queries are the same for all, so that one projection of them serves the batch.
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, self.queries), (self.key, tokens), (self.value, tokens))
        )
        attended = F.scaled_dot_product_attention(query.expand(len(tokens), -1, -1, -1), key, value)
        return self.queries + self.projection(attended.transpose(1, 2).flatten(2))


def interpolate_tokens(tokens: Tensor, pruned: Pruned) -> Tensor:
    """Linear interpolation in time between the kept tokens before and after; past the ends the last one is repeated.

    Args:
        tokens: (B, k, ..., C).
        pruned: which they are.

    Returns:
        (B, N, ..., C).
    """
    index = pruned.kept
    place = torch.arange(pruned.before.shape[1], device=index.device).expand(len(index), -1).contiguous()
    after = torch.searchsorted(index, place).clamp(max=index.shape[1] - 1)
    before = torch.searchsorted(index, place, right=True).sub(1).clamp(min=0)
    start, end = index.gather(1, before), index.gather(1, after)
    share = ((place - start) / (end - start).clamp(min=1)).clamp(0, 1).to(tokens.dtype)
    share = share.view(*share.shape, *[1] * (tokens.ndim - 2))
    return torch.lerp(_take(tokens, before), _take(tokens, after), share)


def _take(tokens: Tensor, source: Tensor) -> Tensor:
    """Token (B, k, ..., C) number `source` (B, N) at every place."""
    return torch.take_along_dim(tokens, source.view(*source.shape, *[1] * (tokens.ndim - 2)), 1)


class NearestRecovery(nn.Module):
    """Every token is the kept one that is nearest on the grid, the one with the lower number where two are.

    Args:
        grid: lengths of the grid that the tokens lie on, (height, width) of an image or (frames,) of a video.
    """

    def __init__(self, grid: Sequence[int]):
        super().__init__()
        self.grid = tuple(grid)

    def forward(self, tokens: Tensor, pruned: Pruned) -> Tensor:
        """Tokens (B, k, ..., C) to (B, N, ..., C)."""
        places = grid_coordinates(self.grid, tokens.device)
        distances = (places[None, :, None] - places[pruned.kept][:, None]).square().sum(-1)
        return _take(tokens, distances.argmin(-1))


class SimilarityRecovery(nn.Module):
    """Every token is a mean of the kept ones it was similar to before pruning; nothing is learned (arXiv 2210.01035).

    The weights are a softmax over the nearest kept tokens' negative squared distances, divided by their mean. They mix
    what the blocks changed, so that blocks which do nothing lose nothing.

    Args:
        num_neighbours: how many kept tokens make one.
        sharpness: factor on the distances in the softmax.
    """

    def __init__(self, num_neighbours: int = 8, sharpness: float = 4.0):
        super().__init__()
        self.num_neighbours = num_neighbours
        self.sharpness = sharpness

    def forward(self, tokens: Tensor, pruned: Pruned) -> Tensor:
        """Tokens (B, k, ..., C) to (B, N, ..., C); axes between are averaged for the similarity."""
        before, chosen = (x.flatten(2, -2).mean(2) if x.ndim > 3 else x for x in (pruned.before, pruned.chosen))
        distances = torch.cdist(before.float(), chosen.float()).square()
        near = distances.topk(min(self.num_neighbours, chosen.shape[1]), largest=False)
        scale = near.values.mean((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        weights = (-self.sharpness * near.values / scale).softmax(-1)
        mixture = torch.zeros_like(distances).scatter(2, near.indices, weights).to(tokens.dtype)
        return pruned.before + _mix(mixture, tokens - pruned.chosen)


def _mix(mixture: Tensor, tokens: Tensor) -> Tensor:
    """Weighted sums (B, N, ..., C) of tokens (B, k, ..., C), by weights (B, N, k)."""
    return (mixture @ tokens.flatten(2)).unflatten(2, tokens.shape[2:])
