"""MHFormer's blocks: several hypotheses of a pose, refined and crossed (arXiv 2111.12707, section 3)."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

NUM_HYPOTHESES = 3
GENERATION_MLP_RATIO = 2
"""Width of the MLPs that generate hypotheses, over the number of frames."""
SHORT_SEQUENCE = 27
"""Up to so many frames the published models normalise what they embed, longer ones do not."""
EMBEDDING_DROPOUT = 0.25  # of short sequences


def _attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Softmax attention of (B, N, C) in several heads, concatenated again."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class HypothesisSelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        size: C.
        num_heads: divides C.
        dropout: rate at the output.
    """

    def __init__(self, size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(size, 3 * size)
        self.projection = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same shape."""
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.dropout(self.projection(_attend(query, key, value, self.num_heads)))


class HypothesisCrossAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from three sources.

    Args:
        size: C.
        num_heads: divides C.
        dropout: rate at the output.
    """

    def __init__(self, size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.projection = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Three (B, N, C) to one."""
        attended = _attend(self.query(queries), self.key(keys), self.value(values), self.num_heads)
        return self.dropout(self.projection(attended))


class HypothesisEncoderBlock(nn.Module):
    """Pre-norm transformer block.

    Args:
        size: C.
        num_heads: divides C.
        dropout: rate after the attention and in the MLP.
        drop_path: rate of stochastic depth.
        eps: of the normalisations.
    """

    def __init__(self, size: int, num_heads: int, dropout: float, drop_path: float, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=eps)
        self.attention = HypothesisSelfAttention(size, num_heads, dropout)
        self.norm2 = nn.LayerNorm(size, eps=eps)
        self.mlp = Mlp(size, GENERATION_MLP_RATIO * size, drop=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class HypothesisEncoder(nn.Module):
    """Transformer whose tokens are coordinates of joints, each with its values in all frames as channels.

    Args:
        num_frames: F, the channels.
        num_tokens: coordinates of all joints.
        num_layers: how many blocks.
        num_heads: divides F.
        dropout: rate after the table, the attentions and in the MLPs.
        drop_path_rate: stochastic depth of the last block; it grows from 0.
        eps: of the normalisations.
    """

    def __init__(
        self,
        num_frames: int,
        num_tokens: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        drop_path_rate: float,
        eps: float,
    ):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, num_tokens, num_frames))
        self.dropout = nn.Dropout(dropout)
        rates = [drop_path_rate * index / max(num_layers - 1, 1) for index in range(num_layers)]
        self.blocks = nn.ModuleList(HypothesisEncoderBlock(num_frames, num_heads, dropout, r, eps) for r in rates)
        self.norm = nn.LayerNorm(num_frames, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, coordinates, F) to the same shape."""
        x = self.dropout(x + self.table)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class HypothesisEmbedding(nn.Module):
    """Coordinates of a frame's joints to C channels; with normalisation where sequences are short, as published.

    Args:
        num_tokens: coordinates of all joints.
        size: C.
        num_frames: F.
    """

    def __init__(self, num_tokens: int, size: int, num_frames: int):
        super().__init__()
        self.linear = nn.Linear(num_tokens, size)
        self.norm = nn.BatchNorm1d(size) if num_frames <= SHORT_SEQUENCE else None
        self.dropout = nn.Dropout(EMBEDDING_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, coordinates, F) to (B, F, C)."""
        x = self.linear(x.transpose(1, 2))
        return x if self.norm is None else self.dropout(_batch_norm(self.norm, x).relu())


def _batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise the channels of (B, N, C) over all else."""
    return norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class HypothesisGeneration(nn.Module):
    """Multi-Hypothesis Generation and temporal embedding: joints to three hypotheses per frame.

    Each hypothesis is the one before plus an encoder of it; tables of frames are added.

    Args:
        num_frames: F.
        num_tokens: coordinates of all joints.
        size: C of a hypothesis.
        num_layers: blocks of each encoder.
        num_heads: of the encoders' attention; divides F.
        dropout: rate in the encoders, and after the tables.
        drop_path_rate: stochastic depth of the encoders' last block.
        eps: of the encoders' normalisations.
    """

    def __init__(
        self,
        num_frames: int,
        num_tokens: int,
        size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        drop_path_rate: float,
        eps: float,
    ):
        super().__init__()
        encoder = partial(HypothesisEncoder, num_frames, num_tokens, num_layers, num_heads)
        count = range(NUM_HYPOTHESES)
        self.norms = nn.ModuleList(nn.LayerNorm(num_frames) for _ in count)
        self.encoders = nn.ModuleList(encoder(dropout, drop_path_rate, eps) for _ in count)
        self.embeddings = nn.ModuleList(HypothesisEmbedding(num_tokens, size, num_frames) for _ in count)
        self.tables = nn.ParameterList(torch.zeros(1, num_frames, size) for _ in count)
        self.dropout = nn.Dropout(dropout)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Keypoints (B, F, J, channels) to hypotheses side by side, (B, F, 3C)."""
        x, hypotheses = keypoints.flatten(2).transpose(1, 2), []
        for norm, encoder, embed, table in zip(self.norms, self.encoders, self.embeddings, self.tables, strict=True):
            x = x + encoder(norm(x))
            hypotheses.append(self.dropout(embed(x) + table))
        return torch.cat(hypotheses, -1)


class HypothesisMixing(nn.Module):
    """Pre-norm MLP over the channels of all hypotheses.

    Args:
        size: C of a hypothesis.
        width: of the hidden layer.
        dropout: rate in the MLP.
        drop_path: rate of stochastic depth.
        eps: of the normalisation.
    """

    def __init__(self, size: int, width: int, dropout: float, drop_path: float, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(NUM_HYPOTHESES * size, eps=eps)
        self.mlp = Mlp(NUM_HYPOTHESES * size, width, drop=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, hypotheses: list[Tensor]) -> Tensor:
        """Three (B, N, C) to (B, N, 3C)."""
        x = torch.cat(hypotheses, -1)
        return x + self.drop_path(self.mlp(self.norm(x)))


class SelfHypothesisBlock(nn.Module):
    """Self-Hypothesis Refinement: every hypothesis attends to itself, an MLP mixes them.

    Args:
        size: C of a hypothesis.
        num_heads: divides C.
        width: of the MLP's hidden layer.
        dropout: rate after the attentions and in the MLP.
        drop_path: rate of stochastic depth.
        eps: of the normalisations.
    """

    def __init__(self, size: int, num_heads: int, width: int, dropout: float, drop_path: float, eps: float):
        super().__init__()
        count = range(NUM_HYPOTHESES)
        self.norms = nn.ModuleList(nn.LayerNorm(size, eps=eps) for _ in count)
        self.attentions = nn.ModuleList(HypothesisSelfAttention(size, num_heads, dropout) for _ in count)
        self.drop_path = DropPath(drop_path)
        self.mixing = HypothesisMixing(size, width, dropout, drop_path, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, 3C) to the same shape."""
        parts = zip(x.chunk(NUM_HYPOTHESES, -1), self.norms, self.attentions, strict=True)
        return self.mixing([part + self.drop_path(attention(norm(part))) for part, norm, attention in parts])


class CrossHypothesisBlock(nn.Module):
    """Cross-Hypothesis Interaction: the two others of a hypothesis say where it attends to itself.

    One after the other: what a hypothesis became is what the next ones ask and answer with.

    Args:
        size: C of a hypothesis.
        num_heads: divides C.
        width: of the MLP's hidden layer.
        dropout: rate after the attentions and in the MLP.
        drop_path: rate of stochastic depth.
        eps: of the normalisations.
    """

    def __init__(self, size: int, num_heads: int, width: int, dropout: float, drop_path: float, eps: float):
        super().__init__()
        count = range(NUM_HYPOTHESES)
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(size, eps=eps) for _ in range(3)) for _ in count)
        self.attentions = nn.ModuleList(HypothesisCrossAttention(size, num_heads, dropout) for _ in count)
        self.drop_path = DropPath(drop_path)
        self.mixing = HypothesisMixing(size, width, dropout, drop_path, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, 3C) to the same shape."""
        parts = list(x.chunk(NUM_HYPOTHESES, -1))
        for number, attention in enumerate(self.attentions):
            norms: Any = self.norms[number]
            sources = [*parts[:number], *parts[number + 1 :], parts[number]]
            attended = attention(*(norm(source) for norm, source in zip(norms, sources, strict=True)))
            parts[number] = parts[number] + self.drop_path(attended)
        return self.mixing(parts)


class HypothesisHead(nn.Module):
    """Regression head: all hypotheses of a frame to the positions of its joints.

    Args:
        size: C of a hypothesis.
        num_joints: J.
        eps: of the layer normalisation.
    """

    def __init__(self, size: int, num_joints: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(NUM_HYPOTHESES * size, eps=eps)
        self.batch_norm = nn.BatchNorm1d(NUM_HYPOTHESES * size)
        self.linear = nn.Linear(NUM_HYPOTHESES * size, 3 * num_joints)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, 3C) to (B, N, J, 3)."""
        return self.linear(_batch_norm(self.batch_norm, self.norm(x))).unflatten(-1, (-1, 3))
