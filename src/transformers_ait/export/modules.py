"""The parts of a model that are exported, as modules of plain tensors: no caches, no options, no Python values."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ..map_kinds_ait import MapKind
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..modeling_token_decoder import AiTAttention, AiTDecoderBlock
from ..prediction_ait import Tokenizer


class ParallelMap(nn.Module):
    """A dense task of a parallel model end to end: image in, map out.

    Args:
        model: the model.
        task: what to predict.
    """

    def __init__(self, model: AiTForDenseAndInstancePrediction, task: str):
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Predicted native map (B, [C,] S, S) of images (B, 3, S, S)."""
        return self.model.generate(pixel_values, self.task).dense_maps[self.task]


class MemoryEncoder(nn.Module):
    """Backbone and encoder, and of every decoder block what depends on the image alone."""

    def __init__(self, model: AiTForDenseAndInstancePrediction):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Cross-attention keys and values (B, heads, N, head_dim), block by block, of images (B, 3, S, S)."""
        memory = self.model.get_encoder_memory(pixel_values)
        outputs: list[Tensor] = []
        for block in cast(Iterable[AiTDecoderBlock], self.model.model.decoder.blocks):
            attention = block.cross_attention
            normalized = block.norm2(memory)
            outputs += [_heads(attention, layer(normalized)) for layer in (attention.key, attention.value)]
        return tuple(outputs)


class DecodingStep(nn.Module):
    """One step of the token decoder over caches of fixed length, so that one graph serves every position.

    Args:
        model: an autoregressive model.
        task: one of the model's.
        rows: the vocabulary rows that the task uses, V' of them.
    """

    start: Tensor
    positions: Tensor
    embeddings: Tensor
    bias: Tensor
    own_positions: Tensor

    def __init__(self, model: AiTForDenseAndInstancePrediction, task: str, rows: slice):
        super().__init__()
        config, decoder = model.config, model.model.decoder
        index, length = config.task_ids[task], config.sequence_length(task)
        self.blocks = decoder.blocks
        self.norm = decoder.norm
        self.register_buffer("start", decoder.task_embeddings[index].detach().clone())
        self.register_buffer("positions", decoder.position_embeddings[index, :length].detach().clone())
        self.register_buffer("embeddings", decoder.token_embeddings[rows].detach().clone())
        self.register_buffer("bias", decoder.output_bias[rows].detach().clone())
        self.register_buffer("own_positions", torch.arange(length)[:, None])

    def forward(self, token_weights: Tensor, position: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Logits of one position.

        Args:
            token_weights: (B, V'), the previous token: one 1 in a row, or probabilities for a soft token. Without
                effect at position 0, where the task embedding stands.
            position: int64 scalar, counted from 0.
            *state: block by block the memory's keys and values (B, heads, N, head_dim), then block by block the keys
                and values of past positions (B, heads, L, head_dim), of which those from `position` on are ignored.

        Returns:
            Logits (B, V'), then block by block the past's keys and values with this position's written into them.
        """
        memory, past = state[: len(state) // 2], state[len(state) // 2 :]
        x = torch.where(position == 0, self.start, token_weights @ self.embeddings)
        x = (x + self.positions.index_select(0, position.view(1))).unsqueeze(1)
        future = self.own_positions >= position
        present: list[Tensor] = []
        for index, block in enumerate(cast(Iterable[AiTDecoderBlock], self.blocks)):
            pair = slice(2 * index, 2 * index + 2)
            attended, written = _self_attention(block.self_attention, block.norm1(x), past[pair], position, future)
            x = x + attended
            x = x + _cross_attention(block.cross_attention, block.norm2(x), memory[pair])
            x = x + block.mlp(block.norm3(x))
            present += written
        return (self.norm(x).squeeze(1) @ self.embeddings.T + self.bias, *present)


class Detokenizer(nn.Module):
    """Code logits to dense maps or masks.

    Args:
        tokenizer: of one of a model's tasks.
        soft: decode probabilities instead of the most probable codes.
        kind: of a dense task's map; None are masks.
    """

    def __init__(self, tokenizer: Tokenizer, soft: bool, kind: MapKind | None):
        super().__init__()
        self.tokenizer = tokenizer
        self.soft = soft
        self.kind = kind

    def forward(self, code_logits: Tensor) -> Tensor:
        """Predicted native maps (B, [C,] S, S), or masks (B, S, S), of code logits (B, L, K)."""
        side = self.tokenizer.config.grid_size
        if self.soft:
            decoded = self.tokenizer.decode_soft(code_logits.transpose(1, 2).unflatten(2, (side, side)))
        else:
            decoded = self.tokenizer.decode(code_logits.argmax(dim=-1).unflatten(1, (side, side)))
        return decoded.squeeze(1) if self.kind is None else self.kind.from_tokenizer(decoded)


def _heads(attention: AiTAttention, x: Tensor) -> Tensor:
    """(B, N, d) to (B, heads, N, head_dim)."""
    return x.unflatten(-1, (attention.config.num_attention_heads, -1)).transpose(1, 2)


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    """Dot products (B, heads, 1, S) of one query with keys; this way round no runtime transposes the keys."""
    return (keys @ query.transpose(2, 3)).transpose(2, 3)


def _query(attention: AiTAttention, x: Tensor) -> Tensor:
    query = _heads(attention, attention.query(x))
    return query * query.shape[-1] ** -0.5


def _merge(attention: AiTAttention, attended: Tensor) -> Tensor:
    return attention.projection(attended.transpose(1, 2).flatten(2))


def _cross_attention(attention: AiTAttention, x: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
    keys, values = memory
    return _merge(attention, _scores(_query(attention, x), keys).softmax(dim=-1) @ values)


def _self_attention(
    attention: AiTAttention, x: Tensor, past: tuple[Tensor, ...], position: Tensor, future: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Attention output (B, 1, d) and the extended past; `future` (L, 1) marks what the past does not hold yet."""
    query, key, value = _query(attention, x), *(_heads(attention, f(x)) for f in (attention.key, attention.value))
    scores = _scores(query, past[0]).masked_fill(future.T, float("-inf"))
    # The position's own key and value stand apart, so that nothing waits for the caches to be written.
    weights = torch.cat((scores, _scores(query, key)), dim=-1).softmax(dim=-1)
    attended = weights[..., :-1] @ past[1] + weights[..., -1:] * value
    index = position.expand(key.shape)
    return _merge(attention, attended), [
        cache.scatter(2, index, x) for cache, x in zip(past, (key, value), strict=True)
    ]
