"""Transformer encoder over a backbone map, and the causal token decoder with its caches. Blind to tasks."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_ait import attend
from .configuration_token_decoder import AiTTokenDecoderConfig
from .decoding_cache_ait import AffineWeights, DecoderCache, DecodingBlock, FixedShapePosition, NormWeights
from .layer_states_ait import LayerStates


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

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        causal: bool = False,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend from (B, L, d) to given keys and values; returns (B, L, d), and appends the weights to `kept`."""
        query = self._split(self.query(x))
        attended = attend(
            query,
            *keys_values,
            scale=query.shape[-1] ** -0.5,
            causal=causal,
            dropout=self.config.dropout if self.training else 0.0,
            implementation=self.config._attn_implementation,
            kept=kept,
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

    def forward(self, x: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """(B, N, d) to the same shape; attention weights are appended to `kept`."""
        normalized = self.norm1(x)
        attended = self.attention(normalized, self.attention.keys_values(normalized), kept=kept)
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

    def forward(self, feature_map: Tensor, states: LayerStates | None = None) -> Tensor:
        """Memory (B, N, d) of a map (B, C, h, w) with N = h * w positions; `states` gathers what it asks for."""
        states = states or LayerStates()
        positions = self.positions.to(feature_map.dtype)
        x = self.input_projection(self.drop(feature_map.flatten(2).transpose(1, 2)))
        x = self.input_norm(x) + positions
        for block in self.blocks:
            states.note(x)
            x = block(x, states.attentions) if states.any else block(x)
        x = self.output_norm(self.output_projection(self.norm(x))) + positions
        x = x + self.drop_path(self.output_mlp(self.output_mlp_norm(x)))
        states.note(x)
        return x


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

    def forward(self, x: Tensor, memory: Tensor, states: LayerStates | None = None) -> Tensor:
        """All positions at once: (B * T, L, d) under the causal mask, each image's T tasks attending to its (N, d).

        Args:
            x: (B * T, L, d).
            memory: (B, N, d).
            states: gathers attention weights, where it asks for them.
        """
        own, cross = (states.attentions, states.cross_attentions) if states else (None, None)
        normalized = self.norm1(x)
        keys_values = self.self_attention.keys_values(normalized)
        x = x + self.drop_path(self.drop(self.self_attention(normalized, keys_values, causal=True, kept=own)))
        keys_values = self.memory_keys_values(memory)
        # An image's tasks are one row of queries, so that its memory's keys and values stand there once.
        queries = self.norm2(x).reshape(keys_values[0].shape[0], -1, x.shape[2])
        x = x + self.drop_path(self.drop(self.cross_attention(queries, keys_values, kept=cross).reshape(x.shape)))
        return x + self.drop_path(self.mlp(self.norm3(x)))

    def start(self, memory: Tensor, max_length: int) -> DecodingBlock:
        """The block for a decoding run of at most `max_length` steps over a memory (B, N, d)."""
        own, cross = self.self_attention, self.cross_attention
        keys, values = (x.flatten(0, 1).contiguous() for x in self.memory_keys_values(memory))
        groups, _, head_dim = keys.shape
        scale = head_dim**-0.5
        projections = (AffineWeights.of(own.query, scale), AffineWeights.of(own.key), AffineWeights.of(own.value))
        return DecodingBlock(
            norms=(NormWeights.of(self.norm1), NormWeights.of(self.norm2), NormWeights.of(self.norm3)),
            query_key_value=AffineWeights.side_by_side(projections),
            self_projection=AffineWeights.of(own.projection),
            cross_query=AffineWeights.of(cross.query, scale),
            cross_projection=AffineWeights.of(cross.projection),
            expand=AffineWeights.of(self.mlp.fc1),
            contract=AffineWeights.of(self.mlp.fc2),
            memory_keys=keys.transpose(1, 2),
            memory_values=values,
            # Zeros, because a step of fixed shape reads positions that are still to come, at weight 0.
            past=memory.new_zeros(2, groups, max_length, head_dim),
            implementation=cross.config._attn_implementation,
        )


class AiTTokenDecoder(nn.Module):
    """Embeddings and memory to logits over the vocabulary.

    Args:
        config: widths and depths.
        vocabulary_size: rows of the tied embedding.
        parallel: own a mask embedding that stands for every input token (AiT-P).
        num_tasks: rows of the task and position embeddings; None is the configuration's number.
    """

    def __init__(
        self, config: AiTTokenDecoderConfig, vocabulary_size: int, parallel: bool, num_tasks: int | None = None
    ):
        super().__init__()
        num_tasks = num_tasks or config.num_tasks
        width = config.hidden_size
        self.config = config
        self.token_embeddings = nn.Parameter(torch.empty(vocabulary_size, width))
        self.task_embeddings = nn.Parameter(torch.empty(num_tasks, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(num_tasks, config.max_positions, width))
        self.mask_embedding = nn.Parameter(torch.empty(1, 1, width)) if parallel else None
        self.output_bias = nn.Parameter(torch.empty(vocabulary_size))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(AiTDecoderBlock(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def inputs(self, token_embeddings: Tensor, task_id: int) -> Tensor:
        """Decoder inputs (B, L + 1, d): the task embedding, then L token embeddings (B, L, d); positions added."""
        # shape[0], because len() would fix the batch of an exported program.
        start = self.task_embeddings[task_id].expand(token_embeddings.shape[0], 1, -1)
        embeddings = torch.cat((start, token_embeddings), dim=1)
        return embeddings + self.position_embeddings[task_id, : embeddings.shape[1]]

    def mask_inputs(self, batch: int, length: int, task_id: int) -> Tensor:
        """Decoder inputs (B, length, d) of a parallel model: the task embedding, then mask embeddings."""
        if self.mask_embedding is None:
            raise ValueError("mask_inputs needs a decoder with parallel=True, which owns a mask embedding.")
        return self.inputs(self.mask_embedding.expand(batch, length - 1, -1), task_id)

    def forward(self, inputs: Tensor, memory: Tensor, states: LayerStates | None = None) -> Tensor:
        """Hidden states (B * T, L, d) of decoder inputs (B * T, L, d) under the causal mask.

        Args:
            inputs: T sequences of each image, one image after the other; T is 1 or more.
            memory: (B, N, d).
            states: gathers what it asks for.
        """
        states = states or LayerStates()
        x = self.drop(inputs)
        for block in self.blocks:
            states.note(x)
            x = block(x, memory, states) if states.any else block(x, memory)
        x = self.norm(x)
        states.note(x)
        return x

    def forward_together(
        self, inputs: Sequence[Tensor], memory: Tensor, states: LayerStates | None = None
    ) -> list[Tensor]:
        """Hidden states (B, L, d) of several tasks' inputs (B, L, d), of any lengths, in one pass over (B, N, d).

        `states` gathers what it asks for, of all tasks' sequences side by side, see `LayerStates.joined`.
        """
        lengths = [x.shape[1] for x in inputs]
        # What fills up a sequence at its end is seen by no position before it.
        filled = [F.pad(x, (0, 0, 0, max(lengths) - x.shape[1])) for x in inputs]
        stacked = torch.stack(filled, dim=1).flatten(0, 1)
        # Named only where given: whoever wraps `forward` need not know of it.
        hidden = self(stacked, memory) if states is None else self(stacked, memory, states)
        hidden = hidden.unflatten(0, (-1, len(inputs)))
        return [hidden[:, task, :length] for task, length in enumerate(lengths)]

    def logits(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Logits (..., len(rows)) of hidden states (..., d); only the asked-for vocabulary rows are multiplied."""
        return hidden @ self.token_embeddings[rows].T + self.output_bias[rows]

    @torch.no_grad()
    def start_cache(self, memory: Tensor, max_length: int) -> DecoderCache:
        """Cache of a decoding run of at most `max_length` steps over a memory (B, N, d).

        Raises:
            TypeError: a linear layer of a block has been replaced by something else.
        """
        blocks = [block.start(memory, max_length) for block in self._blocks()]
        return DecoderCache(blocks, NormWeights.of(self.norm), memory.shape[0])

    @torch.no_grad()
    def step(self, inputs: Tensor, cache: DecoderCache, position: int | FixedShapePosition) -> Tensor:
        """Hidden state (B, d) of the decoder input (B, d) at `position`, extending the cache; nothing is dropped."""
        x = inputs.clone()
        hidden = position.hide_later(x) if isinstance(position, FixedShapePosition) else None
        for block in cache.blocks:
            x = block.step(x, position, hidden)
        return cache.norm.apply(x)

    def _blocks(self) -> Iterator[AiTDecoderBlock]:
        return cast(Iterator[AiTDecoderBlock], iter(self.blocks))
