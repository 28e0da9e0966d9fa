"""Cosine attention in shifted windows of SwinV2, with position biases that inference keeps or shares."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_ait import attend
from .configuration_ait_swinv2 import BIAS_CACHES, AiTSwinV2Config
from .kept_tensors_ait import KeptTensors

# Added to the logits of two positions that the cyclic shift made neighbours; finite, as in the original.
SHIFT_MASK_VALUE = -100.0
NORM_EPSILON = 5e-5
MAX_LOGIT_SCALE = math.log(100.0)
POSITION_MLP_WIDTH = 512


class Workspace:
    """What the blocks of one forward pass share: expanded bias tensors, and what is gathered for the caller.

    Without gradient, blocks overwrite each other's bias, since touching fresh memory of this size costs more in page
    faults than the arithmetic.

    Args:
        attentions: a list that every block appends its weights (B * windows, heads, window^2, window^2) to; None is not
            asked for.
        maps: a list that every stage appends its map to, as a sequence (B, H * W, C) and as it is (B, H, W, C); None is
            not asked for.
    """

    def __init__(self, attentions: list[Tensor] | None = None, maps: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.attentions = attentions
        self.maps = maps
        self._tensors: dict[tuple, Tensor] = {}
        self._owners: dict[int, nn.Module] = {}

    def tensor(self, role: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor to overwrite."""
        key = (role, tuple(shape), like.dtype, like.device)
        if key not in self._tensors:
            self._tensors[key] = like.new_empty(shape)
        return self._tensors[key]

    def leave(self, x: Tensor) -> Tensor:
        """A map (B, H, W, C) to go on with, noted where maps are asked for."""
        if self.maps is None:
            return x
        sequence = x.flatten(1, 2)
        x = sequence.view(x.shape)  # so that gradients pass through what callers get
        self.maps.append((sequence, x))
        return x

    def take_over(self, tensor: Tensor, owner: nn.Module) -> bool:
        """Whether someone else filled the tensor last, or nobody; from now on it is the owner's."""
        before = self._owners.get(id(tensor))
        self._owners[id(tensor)] = owner
        return before is not owner


def relative_coordinates(window: int, pretrained_window: int) -> Tensor:
    """Log-spaced coordinates of all relative positions in a window (SwinV2, arXiv 2111.09883).

    Returns:
        ((2 * window - 1)^2, 2) float32, rows ordered by vertical, then horizontal offset, each from `1 - window` up.
    """
    offsets = torch.arange(1 - window, window, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1).view(-1, 2)
    scaled = grid / max(pretrained_window - 1, 1) * 8
    return scaled.sign() * torch.log2(scaled.abs() + 1) / 3


def shift_masks(window: int, shift: int) -> Tensor:
    """Where windows of a cyclically shifted map hold positions from opposite sides of the map, keys in reverse order.

    Only windows of the last row or column of windows do.

    Returns:
        (3, window^2, window^2) bool, for the last column, the last row, and the corner of both; True is hidden.
    """
    wrapped = torch.arange(window) >= window - shift
    kinds = []
    for last_row, last_column in ((False, True), (True, False), (True, True)):
        region = (2 * (wrapped & last_row)[:, None] + (wrapped & last_column)[None, :]).flatten()
        kinds.append(region[:, None] != region.flip(0)[None, :])
    return torch.stack(kinds)


class AiTSwinV2Attention(nn.Module):
    """Cosine attention in windows with a continuous relative position bias (SwinV2, arXiv 2111.09883).

    The bias depends on the weights alone. Where no gradient is recorded, what `config.position_bias_cache` names is
    kept until the weights change: nothing, the compact table of (heads, (2 * window - 1)^2) values, or that and the
    expanded (heads, window^2, window^2) values, with the shift's masks added.
    """

    coordinates: Tensor
    shift_masks: Tensor

    def __init__(self, config: AiTSwinV2Config, stage: int, shifts: bool):
        super().__init__()
        self.config = config
        self.window = config.window_sizes[stage]
        self.pretrained_window = config.pretrained_window_sizes[stage]
        self.num_heads = config.num_heads[stage]
        self.shift = self.window // 2 if shifts else 0
        width = config.embed_dim * 2**stage
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.logit_scale = nn.Parameter(torch.empty(self.num_heads, 1, 1))
        self.position_mlp = nn.Sequential(
            nn.Linear(2, POSITION_MLP_WIDTH), nn.ReLU(), nn.Linear(POSITION_MLP_WIDTH, self.num_heads, bias=False)
        )
        self.projection = nn.Linear(width, width)
        self.register_buffer("coordinates", relative_coordinates(self.window, self.pretrained_window), persistent=False)
        masks = shift_masks(self.window, self.shift) if self.shift else None
        self.register_buffer("shift_masks", masks, persistent=False)
        self._kept = KeptTensors()

    def train(self, mode: bool = True) -> "AiTSwinV2Attention":
        """Set training mode and forget the cached bias: in-place writes to `weight.data` leave no trace to notice."""
        self._kept.forget()
        return super().train(mode)

    def forward(self, x: Tensor, workspace: Workspace) -> Tensor:
        """(B, H, W, C) to the same shape."""
        batch, height, width, channels = x.shape
        w = self.window
        if width % w or height % w:
            x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        qkv = self._windowed_qkv(x, rows, columns)
        attend_in_windows = self._attend_in_windows if workspace.attentions is None else self._attend_and_keep
        windows = attend_in_windows(qkv, workspace)
        windows = windows.view(batch, rows, columns, self.num_heads, w, w, -1)
        x = self.projection(windows.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, rows * w, columns * w, channels))
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]

    def forward_tokens(self, x: Tensor, positions: Tensor) -> Tensor:
        """Some tokens of a map that is one window, which see each other alone.

        Args:
            x: (B, k, C).
            positions: (B or 1, k) int64, numbers of the tokens in the window in row-major order.

        Returns:
            (B, k, C).
        """
        side, rows, columns = 2 * self.window - 1, positions // self.window, positions % self.window
        down, right = (axis[:, :, None] - axis[:, None] + self.window - 1 for axis in (rows, columns))
        table = self._kept_if("compact", "table", self._compute_table).to(x.dtype)
        bias = table[:, down * side + right].transpose(0, 1)
        qkv = self._qkv(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
        query, key = _normalize(query, scale.to(query.dtype)), _normalize(key)
        attended = attend(query, key, value, bias, scale=1.0, implementation=self.config._attn_implementation)
        return self.projection(attended.transpose(1, 2).flatten(2))

    def _qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values (..., 3C) of (..., C); only queries and values have a bias."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        # In one product, unless something else (LoRA, offloading) has taken the layer's place or its `forward`.
        return F.linear(x, self.qkv.weight, bias) if _is_plain(self.qkv) else self.qkv(x) + bias

    def _windowed_qkv(self, x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values, each (B, rows, columns, heads, w^2, head_dim); keys in reverse order."""
        w = self.window
        qkv = self._qkv(x).view(-1, rows, w, columns, w, 3, self.num_heads, x.shape[-1] // self.num_heads)
        query, key, value = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).unbind(0)
        query, key, value = (x.flatten(4, 5) for x in (query, key.flip(4, 5), value.flip(4, 5)))
        scale = self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
        return _normalize(query, scale.to(query.dtype)), _normalize(key), value

    def _attend_in_windows(self, qkv: tuple[Tensor, Tensor, Tensor], workspace: Workspace) -> Tensor:
        """Attention output (B, rows, columns, heads, w^2, head_dim), one call per kind of border window."""
        if not self.shift:
            return self._attend(qkv, self._position_bias(qkv[0].dtype, workspace))
        bands = []
        for row_slice, last_row in _split_last(qkv[0].shape[1]):
            groups = []
            for column_slice, last_column in _split_last(qkv[0].shape[2]):
                group = tuple(x[:, row_slice, column_slice] for x in qkv)
                groups.append(self._attend(group, self._masked_bias(group[0].dtype, last_row, last_column, workspace)))
            bands.append(torch.cat(groups, dim=2))
        return torch.cat(bands, dim=1)

    def _attend_and_keep(self, qkv: tuple[Tensor, Tensor, Tensor], workspace: Workspace) -> Tensor:
        """As `_attend_in_windows`, with all windows at once and the attention weights appended to the workspace's.

        Their windows are those of the shifted map, row by row, and their keys in the order of the queries.
        """
        query, key, value = qkv
        rows, columns = query.shape[1:3]
        bias = self._position_bias(query.dtype, workspace).flip(-1)  # a copy, which no other block overwrites
        bias = bias.expand(rows, columns, -1, -1, -1)
        if self.shift:
            hidden = torch.zeros(rows, columns, 1, *bias.shape[-2:], dtype=torch.bool, device=bias.device)
            last_column, last_row, corner = self.shift_masks.flip(-1)
            hidden[:, -1], hidden[-1], hidden[-1, -1] = last_column, last_row, corner
            bias = torch.add(bias, hidden, alpha=SHIFT_MASK_VALUE)
        bias = bias.expand(len(query), *bias.shape).flatten(0, 2)
        shape = query.shape
        query, key, value = (x.flatten(0, 2) for x in (query, key.flip(4), value.flip(4)))
        return attend(query, key, value, bias, scale=1.0, kept=workspace.attentions).view(shape)

    def _attend(self, qkv: tuple[Tensor, ...], bias: Tensor) -> Tensor:
        shape = qkv[0].shape
        query, key, value = (x.reshape(-1, *shape[3:]) for x in qkv)
        return attend(query, key, value, bias, scale=1.0, implementation=self.config._attn_implementation).view(shape)

    def _masked_bias(self, dtype: torch.dtype, last_row: bool, last_column: bool, workspace: Workspace) -> Tensor:
        """Bias of the windows of one kind of border, as `_position_bias`."""
        if not (last_row or last_column):
            return self._position_bias(dtype, workspace)
        mask = self.shift_masks[2 * last_row + last_column - 1]

        def compute() -> Tensor:
            bias = self._position_bias(dtype, workspace)
            out = None if self._policy in (None, "full") else workspace.tensor("masked", bias.shape, bias)
            return torch.add(bias, mask, alpha=SHIFT_MASK_VALUE, out=out)

        return self._kept_if("full", (dtype, last_row, last_column), compute)

    def _position_bias(self, dtype: torch.dtype, workspace: Workspace) -> Tensor:
        """Bias (1, heads, w^2, w^2) with keys in reverse order.

        Entry (y, x), (v, u) is then the table's value at (y + v, x + u): a strided view that needs no index.
        """
        w, side = self.window, 2 * self.window - 1
        shape = (1, self.num_heads, w * w, w * w)

        def compute() -> Tensor:
            table = self._kept_if("compact", "table", self._compute_table).to(dtype)
            view = table.view(-1, side, side).unfold(1, w, 1).unfold(2, w, 1)
            if self._policy in (None, "full"):
                return view.reshape(shape)
            bias = workspace.tensor("bias", shape, table)
            if workspace.take_over(bias, self):
                bias.view(view.shape).copy_(view)
            return bias

        return self._kept_if("full", dtype, compute)

    @property
    def _policy(self) -> str | None:
        """What may be kept now; None where gradients are recorded, which would reach what is kept or overwritten."""
        policy = self.config.position_bias_cache
        if policy not in BIAS_CACHES:
            raise ValueError(f"position_bias_cache must be one of {BIAS_CACHES}, got {policy!r}.")
        return None if torch.is_grad_enabled() else policy

    def _kept_if(self, policy: str, role: object, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, kept under this policy and those that keep more."""
        if self._policy == "off":
            self._kept.forget()
        # Inference tensors keep no version, so changes of theirs would go unseen; a compiled graph keeps nothing.
        if self._policy not in (policy, "full") or torch.compiler.is_compiling() or self.q_bias.is_inference():
            return compute()
        first, _, second = self.position_mlp
        if not (_is_plain(first) and _is_plain(second)):
            return compute()  # adapters are switched on and off without a change of any weight
        weights: list[Any] = [first.weight, first.bias, second.weight]
        return self._kept.get(self._policy, role, weights, compute)

    def _compute_table(self) -> Tensor:
        """Table (heads, (2 * w - 1)^2) of `16 * sigmoid(MLP(coordinates))`, float32; the same under autocast."""
        device = self.coordinates.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # which knows no meta device
            values = self.position_mlp(self.coordinates.to(self.q_bias.dtype))
        return 16 * values.float().sigmoid().T.contiguous()


def _is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer computes what its weights say, without adapter, hook of accelerate or the like."""
    return type(layer) is nn.Linear and "forward" not in vars(layer)


def _normalize(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Multiply by `scale` over the L2 norm of the last axis plus the original's epsilon."""
    return x * (scale / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + NORM_EPSILON))


def _split_last(count: int) -> list[tuple[slice, bool]]:
    """Slices over all but the last window of an axis (if any) and over the last, with a flag for the latter."""
    last = (slice(count - 1, count), True)
    return [last] if count == 1 else [(slice(0, count - 1), False), last]
