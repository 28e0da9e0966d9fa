"""Transformer encoder over a backbone map, and the causal token decoder with its caches. Blind to tasks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_ait import attend
from .configuration_token_decoder import AiTTokenDecoderConfig


def sine_table(size: int, width: int) -> Tensor:
    """2-d sine position table; the first half of the channels encodes y, the second x.

    Each half interleaves sin and cos of `position / 10000^(2 * pair / (width / 2))`; positions count from 0.

    Returns:
        (size^2, width) float32.
    """
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
    angles = torch.arange(size, dtype=torch.float32)[:, None] * frequencies
    axis = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    y, x = axis[:, None].expand(-1, size, -1), axis[None].expand(size, -1, -1)
    return torch.cat((y, x), dim=-1).reshape(size * size, width)


@dataclass
class DecoderCache:
    """Keys and values of one decoding run.

    Args:
        cross: per layer, keys and values of the memory, (B, heads, N, head_dim) each; computed once.
        past: per layer, keys and values of past positions, (B, heads, max_length, head_dim) each; filled in place.
    """

    cross: list[tuple[Tensor, Tensor]]
    past: list[tuple[Tensor, Tensor]]


class AiTAttention(nn.Module):
    """Multi-head attention with biased query, key, value and output projections."""

    def __init__(self, config: AiTTokenDecoderConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, N, head_dim) of (B, N, d)."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], causal: bool = False) -> Tensor:
        """Attend from (B, L, d) to given keys and values; returns (B, L, d)."""
        query = self._split(self.query(x))
        attended = attend(
            query,
            *keys_values,
            scale=query.shape[-1] ** -0.5,
            causal=causal,
            dropout=self.config.dropout if self.training else 0.0,
            implementation=self.config._attn_implementation,
        )
        return self.projection(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)


def _mlp(config: AiTTokenDecoderConfig) -> Mlp:
    return Mlp(config.hidden_size, config.intermediate_size, act_layer=nn.GELU, drop=config.dropout)


class AiTEncoderBlock(GradientCheckpointingLayer):
    """Pre-norm self-attention and feed-forward network."""

    def __init__(self, config: AiTTokenDecoderConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AiTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _mlp(config)
        self.drop = nn.Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to the same shape."""
        normalized = self.norm1(x)
        attended = self.attention(normalized, self.attention.keys_values(normalized))
        x = x + self.drop_path(self.drop(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class AiTEncoder(nn.Module):
    """Backbone map to the decoder's memory.

    Args:
        config: widths and depths.
        in_channels: channels of the backbone map.
        grid_size: side of the map; the position table has `grid_size^2` rows.
    """

    positions: Tensor

    def __init__(self, config: AiTTokenDecoderConfig, in_channels: int, grid_size: int):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.config = config
        self.grid_size = grid_size
        self.drop = nn.Dropout(config.dropout)
        self.input_projection = nn.Linear(in_channels, width)
        self.input_norm = nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList(AiTEncoderBlock(config) for _ in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.output_projection = nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width, eps=eps)
        self.output_mlp_norm = nn.LayerNorm(width, eps=eps)
        self.output_mlp = _mlp(config)
        self.drop_path = DropPath(config.drop_path_rate)
        self.register_buffer("positions", sine_table(grid_size, width), persistent=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Memory (B, N, d) of a map (B, C, h, w) with N = h * w positions."""
        positions = self.positions.to(feature_map.dtype)
        x = self.input_projection(self.drop(feature_map.flatten(2).transpose(1, 2)))
        x = self.input_norm(x) + positions
        for block in self.blocks:
            x = block(x)
        x = self.output_norm(self.output_projection(self.norm(x))) + positions
        return x + self.drop_path(self.output_mlp(self.output_mlp_norm(x)))


class AiTDecoderBlock(GradientCheckpointingLayer):
    """Pre-norm causal self-attention, cross-attention and feed-forward network."""

    def __init__(self, config: AiTTokenDecoderConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = AiTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = AiTAttention(config)
        self.norm3 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _mlp(config)
        self.drop = nn.Dropout(config.dropout)
        self.drop_path = DropPath(config.drop_path_rate)

    def memory_keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values of the memory (B, N, d), which shares the queries' LayerNorm."""
        return self.cross_attention.keys_values(self.norm2(memory))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """All positions at once: (B, L, d) under the causal mask, attending to the memory (B, N, d)."""
        normalized = self.norm1(x)
        attended = self.self_attention(normalized, self.self_attention.keys_values(normalized), causal=True)
        return self._after_self_attention(x, attended, self.memory_keys_values(memory))

    def step(self, x: Tensor, cross: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor], position: int) -> Tensor:
        """One position (B, 1, d), given the memory's and the past's keys and values; extends the past in place."""
        normalized = self.norm1(x)
        new = self.self_attention.keys_values(normalized)
        for cache, entry in zip(past, new, strict=True):
            cache[:, :, position : position + 1] = entry
        seen = (past[0][:, :, : position + 1], past[1][:, :, : position + 1])
        return self._after_self_attention(x, self.self_attention(normalized, seen), cross)

    def _after_self_attention(self, x: Tensor, attended: Tensor, cross: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.drop_path(self.drop(attended))
        x = x + self.drop_path(self.drop(self.cross_attention(self.norm2(x), cross)))
        return x + self.drop_path(self.mlp(self.norm3(x)))


class AiTTokenDecoder(nn.Module):
    """Embeddings and memory to logits over the vocabulary.

    Args:
        config: widths and depths.
        vocabulary_size: rows of the tied embedding.
        parallel: own a mask embedding that stands for every input token (AiT-P).
    """

    def __init__(self, config: AiTTokenDecoderConfig, vocabulary_size: int, parallel: bool):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.token_embeddings = nn.Parameter(torch.empty(vocabulary_size, width))
        self.task_embeddings = nn.Parameter(torch.empty(config.num_tasks, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(config.num_tasks, config.max_positions, width))
        self.mask_embedding = nn.Parameter(torch.empty(1, 1, width)) if parallel else None
        self.output_bias = nn.Parameter(torch.empty(vocabulary_size))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(AiTDecoderBlock(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def inputs(self, token_embeddings: Tensor, task_id: int) -> Tensor:
        """Decoder inputs (B, L + 1, d): the task embedding, then L token embeddings (B, L, d); positions added."""
        start = self.task_embeddings[task_id].expand(len(token_embeddings), 1, -1)
        embeddings = torch.cat((start, token_embeddings), dim=1)
        return embeddings + self.position_embeddings[task_id, : embeddings.shape[1]]

    def mask_inputs(self, batch: int, length: int, task_id: int) -> Tensor:
        """Decoder inputs (B, length, d) of a parallel model: the task embedding, then mask embeddings."""
        if self.mask_embedding is None:
            raise ValueError("mask_inputs needs a decoder with parallel=True, which owns a mask embedding.")
        return self.inputs(self.mask_embedding.expand(batch, length - 1, -1), task_id)

    def forward(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """Hidden states (B, L, d) of decoder inputs (B, L, d) under the causal mask."""
        x = self.drop(inputs)
        for block in self.blocks:
            x = block(x, memory)
        return self.norm(x)

    def logits(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Logits (..., len(rows)) of hidden states (..., d); only the asked-for vocabulary rows are multiplied."""
        return hidden @ self.token_embeddings[rows].T + self.output_bias[rows]

    def start_cache(self, memory: Tensor, max_length: int) -> DecoderCache:
        """Cache of a decoding run of at most `max_length` steps over a memory (B, N, d)."""
        cross = [block.memory_keys_values(memory) for block in self._blocks()]
        batch, heads, _, head_dim = cross[0][0].shape
        shape = (batch, heads, max_length, head_dim)
        return DecoderCache(cross, [(memory.new_empty(shape), memory.new_empty(shape)) for _ in self.blocks])

    def step(self, inputs: Tensor, cache: DecoderCache, position: int) -> Tensor:
        """Hidden state (B, d) of the decoder input (B, d) at `position`, extending the cache."""
        x = self.drop(inputs.unsqueeze(1))
        for block, cross, past in zip(self._blocks(), cache.cross, cache.past, strict=True):
            x = block.step(x, cross, past, position)
        return self.norm(x).squeeze(1)

    def _blocks(self) -> Iterator[AiTDecoderBlock]:
        return cast(Iterator[AiTDecoderBlock], iter(self.blocks))
