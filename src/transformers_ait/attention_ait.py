"""Scaled dot-product attention with an additive bias, written out or through PyTorch's fused kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    dropout: float = 0.0,
    implementation: str | None = "sdpa",
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Attention output `softmax(scale * query @ key^T + bias) @ value`.

    Args:
        query: (..., heads, L, head_dim).
        key: (..., heads, S, head_dim).
        value: (..., heads, S, head_dim).
        bias: additive, broadcastable to (..., heads, L, S).
        scale: factor on the dot products.
        causal: position i sees keys 0..i; needs L == S.
        dropout: probability with which attention weights are dropped.
        implementation: "eager" writes the softmax out, anything else uses the fused kernel.
        kept: a list that the attention weights (..., heads, L, S), before dropout, are appended to. The softmax is then
            written out, because fused kernels never hold the weights.

    Returns:
        (..., heads, L, head_dim).
    """
    if implementation != "eager" and kept is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, is_causal=causal, scale=scale
        )
    scores = scale * query @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.float().softmax(dim=-1).to(value.dtype)
    if kept is not None:
        kept.append(weights)
    return F.dropout(weights, dropout) @ value


def attend_once(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    implementation: str | None = "sdpa",
    bias: Tensor | None = None,
) -> Tensor:
    """Attention output of one query per group, `softmax(query @ keys + bias) @ values`; the query carries the scale.

    On a CPU the softmax is written out: for one query the fused kernel spends longer on preparing its blocks than two
    batched products take.

    Args:
        query: (G, 1, head_dim), G counting every head of every example; already scaled.
        keys: (G, head_dim, S), transposed.
        values: (G, S, head_dim).
        implementation: "eager" writes the softmax out everywhere.
        bias: additive (S,), the same in every group.

    Returns:
        (G, 1, head_dim).
    """
    if implementation == "eager" or query.device.type == "cpu":
        scores = torch.bmm(query, keys) if bias is None else torch.baddbmm(bias, query, keys)
        return torch.bmm(scores.softmax(dim=-1), values)
    # The fused kernels of accelerators want four axes.
    mask = None if bias is None else bias.expand(1, query.shape[0], 1, -1)
    return F.scaled_dot_product_attention(
        query[None], keys.transpose(1, 2)[None], values[None], attn_mask=mask, scale=1.0
    )[0]
