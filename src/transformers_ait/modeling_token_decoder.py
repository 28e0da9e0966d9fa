"""Transformer encoder over a backbone map, and the causal token decoder with its caches. Blind to tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_ait import attend, attend_once
from .configuration_token_decoder import AiTTokenDecoderConfig

SQRT_HALF = 0.5**0.5


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


class AffineWeights(NamedTuple):
    """Weight (in, out), transposed as `torch.addmm` takes it, and bias (out,) of a linear layer."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Module, scale: float = 1.0) -> "AffineWeights":
        """Views of a layer's parameters; copies where the output is to be scaled or the weight is quantised."""
        if not isinstance(layer, nn.Linear):
            raise TypeError(
                f"Decoding step by step needs nn.Linear layers in the decoder, got {type(layer).__name__}. Merge "
                "adapters into the weights first."
            )
        weight, bias = layer.weight, layer.bias
        if type(weight.data) is not Tensor and hasattr(weight, "dequantize"):
            weight = weight.dequantize().to(bias.dtype)  # a quantised weight, expanded once per run
        if weight.shape != (layer.out_features, layer.in_features) or weight.dtype != bias.dtype:
            raise TypeError(
                f"Decoding step by step cannot read the weight of {type(layer).__name__}: {tuple(weight.shape)} of "
                f"{weight.dtype}. Leave the decoder out of the quantization."
            )
        weight = weight.T
        return cls(weight, bias) if scale == 1 else cls(weight * scale, bias * scale)

    @classmethod
    def side_by_side(cls, layers: Sequence["AffineWeights"]) -> "AffineWeights":
        """One layer whose output is the concatenation of the layers' outputs."""
        return cls(torch.cat([layer.weight.T for layer in layers]).T, torch.cat([layer.bias for layer in layers]))

    def apply(self, x: Tensor) -> Tensor:
        """The layer's output (B, out) for x (B, in)."""
        return torch.addmm(self.bias, x, self.weight)

    def add_to(self, x: Tensor, update: Tensor) -> Tensor:
        """Add the layer's output for `update` (B, in) to x (B, out), in place."""
        return x.addmm_(update, self.weight).add_(self.bias)


class NormWeights(NamedTuple):
    """Parameters of a LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> "NormWeights":
        """Views of a LayerNorm's parameters."""
        return cls(norm.weight, norm.bias, norm.eps)

    def apply(self, x: Tensor) -> Tensor:
        """Normalise x (B, d) over its last axis."""
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class FixedShapePosition:
    """A position whose number is read on the device, so that one sequence of kernels serves many positions.

    Args:
        index: (1,) integer.
        length: how many positions of the past are read; later ones than `index` among them count for nothing.
    """

    index: Tensor
    length: int

    def hide_later(self, like: Tensor) -> Tensor:
        """Attention bias (length,): 0 up to the position, minus infinity after it."""
        later = torch.arange(self.length, device=self.index.device) > self.index
        return torch.zeros_like(later, dtype=like.dtype).masked_fill(later, float("-inf"))


@dataclass(slots=True)
class DecodingBlock:
    """A decoder block during one decoding run: its weights as a step uses them, and keys and values.

    A step's products take microseconds each, so finding weights through modules, three products for query, key and
    value instead of one, and temporary tensors cost nearly as much again. G counts every head of every example.

    Args:
        norms: the three LayerNorms.
        query_key_value: the self-attention's three projections side by side, the query's scaled by head_dim^-0.5.
        self_projection: output projection of the self-attention.
        cross_query: query projection of the cross-attention, scaled likewise.
        cross_projection: output projection of the cross-attention.
        expand: first layer of the feed-forward network.
        contract: second layer of the feed-forward network.
        memory_keys: (G, head_dim, N), transposed; computed once.
        memory_values: (G, N, head_dim); computed once.
        past: keys and values of past positions, (2, G, max_length, head_dim); filled in place.
        implementation: attention implementation, see `attend_once`.
    """

    norms: tuple[NormWeights, NormWeights, NormWeights]
    query_key_value: AffineWeights
    self_projection: AffineWeights
    cross_query: AffineWeights
    cross_projection: AffineWeights
    expand: AffineWeights
    contract: AffineWeights
    memory_keys: Tensor
    memory_values: Tensor
    past: Tensor
    implementation: str | None

    def step(self, x: Tensor, position: int | FixedShapePosition, hidden: Tensor | None = None) -> Tensor:
        """The block's output (B, d) at one position for its input x (B, d), which it overwrites.

        Args:
            x: (B, d).
            position: number of the position.
            hidden: `position.hide_later(x)` where the position is of fixed shape.
        """
        attended = self._attend_to_past(self.norms[0].apply(x), position, hidden)
        x = self.self_projection.add_to(x, attended)
        query = self.cross_query.apply(self.norms[1].apply(x)).view(len(self.memory_keys), 1, -1)
        attended = attend_once(query, self.memory_keys, self.memory_values, self.implementation)
        x = self.cross_projection.add_to(x, attended.view(x.shape))
        return self._add_feed_forward(x, self.norms[2].apply(x))

    def keep_first(self, groups: int) -> None:
        """Go on with the first groups alone."""
        self.memory_keys, self.memory_values = self.memory_keys[:groups], self.memory_values[:groups]
        self.past = self.past[:, :groups]

    def _attend_to_past(self, normalized: Tensor, position: int | FixedShapePosition, hidden: Tensor | None) -> Tensor:
        """Append the position's key and value to the past; the attention output (B, d)."""
        groups, head_dim = self.past.shape[1], self.past.shape[3]
        projected = self.query_key_value.apply(normalized).view(len(normalized), 3, -1)
        projected = projected.transpose(0, 1).reshape(3, groups, head_dim)
        if isinstance(position, FixedShapePosition):
            self.past.index_copy_(2, position.index, projected.narrow(0, 1, 2).unsqueeze(2))
            length = position.length
        else:
            self.past.select(2, position).copy_(projected.narrow(0, 1, 2))
            length = position + 1
        keys, values = self.past.narrow(2, 0, length).unbind()
        query = projected.narrow(0, 0, 1).transpose(0, 1)
        return attend_once(query, keys.transpose(1, 2), values, self.implementation, hidden).view(normalized.shape)

    def _add_feed_forward(self, x: Tensor, normalized: Tensor) -> Tensor:
        """Add the feed-forward network's output, with gelu(h) = s (u + u erf(u)) for u = s h and s = sqrt(1/2).

        Both factors ride on the matrix products, and two elementwise kernels take a third of F.gelu's time, which
        looks up a oneDNN primitive at every call.
        """
        u = torch.addmm(self.expand.bias, normalized, self.expand.weight, beta=SQRT_HALF, alpha=SQRT_HALF)
        return x.addmm_(torch.addcmul(u, u, u.erf()), self.contract.weight, alpha=SQRT_HALF).add_(self.contract.bias)


@dataclass
class DecoderCache:
    """State of one decoding run, made by `AiTTokenDecoder.start_cache`; stale once a weight changes.

    Args:
        blocks: one entry per decoder block.
        norm: the last LayerNorm.
        batch: examples.
    """

    blocks: list[DecodingBlock]
    norm: NormWeights
    batch: int

    def keep_first(self, batch: int) -> None:
        """Go on with the first examples of the batch alone."""
        for block in self.blocks:
            block.keep_first(block.past.shape[1] * batch // self.batch)
        self.batch = batch


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
        """All positions at once: (B * T, L, d) under the causal mask, each image's T tasks attending to its (N, d)."""
        normalized = self.norm1(x)
        attended = self.self_attention(normalized, self.self_attention.keys_values(normalized), causal=True)
        return self._after_self_attention(x, attended, self.memory_keys_values(memory))

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

    def _after_self_attention(self, x: Tensor, attended: Tensor, cross: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.drop_path(self.drop(attended))
        # An image's tasks are one row of queries, so that its memory's keys and values stand there once.
        queries = self.norm2(x).reshape(cross[0].shape[0], -1, x.shape[2])
        x = x + self.drop_path(self.drop(self.cross_attention(queries, cross).reshape(x.shape)))
        return x + self.drop_path(self.mlp(self.norm3(x)))


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

    def forward(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """Hidden states (B * T, L, d) of decoder inputs (B * T, L, d) under the causal mask.

        Args:
            inputs: T sequences of each image, one image after the other; T is 1 or more.
            memory: (B, N, d).
        """
        x = self.drop(inputs)
        for block in self.blocks:
            x = block(x, memory)
        return self.norm(x)

    def forward_together(self, inputs: Sequence[Tensor], memory: Tensor) -> list[Tensor]:
        """Hidden states (B, L, d) of several tasks' inputs (B, L, d), of any lengths, in one pass over (B, N, d)."""
        lengths = [x.shape[1] for x in inputs]
        # What fills up a sequence at its end is seen by no position before it.
        filled = [F.pad(x, (0, 0, 0, max(lengths) - x.shape[1])) for x in inputs]
        hidden = self(torch.stack(filled, dim=1).flatten(0, 1), memory).unflatten(0, (-1, len(inputs)))
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
