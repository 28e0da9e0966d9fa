"""A decoder during one decoding run: its weights as a step uses them, and the keys and values of what came before."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attention_ait import attend_once

SQRT_HALF = 0.5**0.5


class AffineWeights(NamedTuple):
    """Weight (in, out), transposed as `torch.addmm` takes it, and bias (out,) of a linear layer."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Module, scale: float = 1.0) -> "AffineWeights":
        """Views of a layer's parameters; copies where the output is scaled, or the weight quantised or adapted."""
        layer = _merged(layer)
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


def _merged(layer: Any) -> nn.Module:
    """A layer with PEFT adapters (LoRA and others) as the layer that its output is that of, others as they are.

    Merged in a copy, by PEFT's own method, so that a model predicts between the steps of a training.
    """
    if not (hasattr(layer, "base_layer") and hasattr(layer, "merge")):
        return layer
    if not (layer.merged or layer.disable_adapters):
        layer = copy.deepcopy(layer)
        layer.merge()
    return layer.base_layer


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
