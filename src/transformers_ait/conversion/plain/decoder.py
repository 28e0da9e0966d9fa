"""Encoder and decoder, plainly: memory of an image, one decoding step, logits of a whole sequence."""

import math

import torch
import torch.nn.functional as F

from .layers import OriginalConfig, Tensors, plain_layer_norm, plain_linear, plain_mlp

Cache = list[tuple[torch.Tensor, torch.Tensor]]


def plain_sine_table(
    rows: int, columns: int, channels: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Two-dimensional sine table (rows * columns, channels): the y half first, sine and cosine interleaved."""
    pair = torch.arange(channels // 4, dtype=torch.float32, device=device)
    period = 10000 ** (2 * pair / (channels // 2))

    def half(size: int) -> torch.Tensor:
        angle = torch.arange(size, dtype=torch.float32, device=device)[:, None] / period
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    y = half(rows)[:, None].expand(rows, columns, channels // 2)
    x = half(columns)[None].expand(rows, columns, channels // 2)
    return torch.cat([y, x], dim=-1).reshape(rows * columns, channels).to(dtype)


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attend(
    tensors: Tensors, name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled dot-product attention over (B, heads, positions, head_dim), then the output projection."""
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits + mask
    out = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2).flatten(2)
    return plain_linear(tensors, f"{name}.proj", out)


def plain_encoder_memory(tensors: Tensors, config: OriginalConfig, feature: torch.Tensor) -> torch.Tensor:
    """Decoder memory (B, N, d) of a backbone map (B, C, h, w) with h, w as in the configuration's sine table."""
    transformer = config["transformer"]
    heads, rows, columns = transformer["nhead"], transformer["n_rows"], transformer["n_cols"]
    table = plain_sine_table(rows, columns, transformer["d_model"], feature.device, feature.dtype)
    x = plain_linear(tensors, "transformer.input_proj", feature.flatten(2).transpose(1, 2))
    x = plain_layer_norm(tensors, "transformer.stem_ln", x, 1e-5) + table
    for block in range(transformer["num_encoder_layers"]):
        name = f"transformer.encoder.blocks.{block}"
        normed = plain_layer_norm(tensors, f"{name}.norm1", x, 1e-5)
        q, k, v = (_split_heads(plain_linear(tensors, f"{name}.attn.{w}", normed), heads) for w in ("wq", "wk", "wv"))
        x = x + _attend(tensors, f"{name}.attn", q, k, v)
        x = x + plain_mlp(tensors, f"{name}.mlp", plain_layer_norm(tensors, f"{name}.norm2", x, 1e-5))
    x = plain_linear(tensors, "transformer.proj", plain_layer_norm(tensors, "transformer.encout_ln", x, 1e-5))
    x = plain_layer_norm(tensors, "transformer.proj_ln", x, 1e-5) + table
    return x + plain_mlp(tensors, "transformer.proj_mlp", plain_layer_norm(tensors, "transformer.proj_mlp_ln", x, 1e-5))


def _causal_mask(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor | None:
    """Additive mask for the last `queries` of `keys` positions; None for a single query, which sees everything."""
    if queries == 1:
        return None
    query = torch.arange(keys - queries, keys, device=like.device)[:, None]
    key = torch.arange(keys, device=like.device)[None]
    return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill(key > query, -math.inf)


def plain_decoder_step(
    tensors: Tensors, config: OriginalConfig, x: torch.Tensor, memory: torch.Tensor, cache: Cache | None = None
) -> tuple[torch.Tensor, Cache]:
    """Run the decoder on new positions, behind those already cached.

    Args:
        tensors: original tensors, names starting with `transformer.`.
        config: original model configuration.
        x: embeddings of the new positions (B, n, d), position embedding added.
        memory: encoder memory (B, N, d).
        cache: self-attention keys and values of each block so far, each (B, heads, past, head_dim).

    Returns:
        Logits over the vocabulary (B, n, V) and the cache grown by concatenation.
    """
    heads = config["transformer"]["nhead"]
    grown: Cache = []
    for block in range(config["transformer"]["num_decoder_layers"]):
        name = f"transformer.decoder.blocks.{block}"
        normed = plain_layer_norm(tensors, f"{name}.norm1", x, 1e-5)
        q, k, v = (_split_heads(plain_linear(tensors, f"{name}.attn.{w}", normed), heads) for w in ("wq", "wk", "wv"))
        if cache is not None:
            k, v = torch.cat([cache[block][0], k], dim=2), torch.cat([cache[block][1], v], dim=2)
        grown.append((k, v))
        x = x + _attend(tensors, f"{name}.attn", q, k, v, _causal_mask(q.shape[2], k.shape[2], x))
        q = plain_linear(tensors, f"{name}.crossattn.wq", plain_layer_norm(tensors, f"{name}.norm2", x, 1e-5))
        source = plain_layer_norm(tensors, f"{name}.norm2", memory, 1e-5)
        k, v = (_split_heads(plain_linear(tensors, f"{name}.crossattn.{w}", source), heads) for w in ("wk", "wv"))
        x = x + _attend(tensors, f"{name}.crossattn", _split_heads(q, heads), k, v)
        x = x + plain_mlp(tensors, f"{name}.mlp", plain_layer_norm(tensors, f"{name}.norm3", x, 1e-5))
    x = plain_layer_norm(tensors, "transformer.norm", x, 1e-5)
    return F.linear(x, tensors["transformer.voc_embed"], tensors["transformer.outp_bias"]), grown


def plain_start(tensors: Tensors, task_id: int, batch: int) -> torch.Tensor:
    """Embedding of the task, with its position embedding: the first decoder input (B, 1, d)."""
    start = tensors["transformer.det_embed"][task_id] + tensors["transformer.dec_embed"][task_id, :1]
    return start.expand(batch, 1, -1)


def plain_decoder_logits(
    tensors: Tensors, config: OriginalConfig, memory: torch.Tensor, task_id: int, inputs: torch.Tensor
) -> torch.Tensor:
    """Teacher-forced logits (B, L, V) for input embeddings (B, L - 1, d) behind the task embedding."""
    positions = tensors["transformer.dec_embed"][task_id, 1 : inputs.shape[1] + 1]
    x = torch.cat([plain_start(tensors, task_id, memory.shape[0]), inputs + positions], dim=1)
    return plain_decoder_step(tensors, config, x, memory)[0]
