"""SwinV2 backbone with a window size and a shift switch per stage."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput

from .attention_ait import attend
from .configuration_ait import BIAS_CACHES, AiTSwinV2Config
from .kept_tensors_ait import KeptTensors

# Added to the logits of two positions that the cyclic shift made neighbours; finite, as in the original.
SHIFT_MASK_VALUE = -100.0
NORM_EPSILON = 5e-5
MAX_LOGIT_SCALE = math.log(100.0)
POSITION_MLP_WIDTH = 512

# On a CPU, inference passes as many images at once through a block as keep its widest tensor below this: the C library
# hands larger ones back to the system, and touching fresh pages costs more than a batch saves.
CPU_CHUNK_BYTES = 32 * 2**20


class Workspace:
    """Expanded bias tensors of one forward pass without gradient.

    Blocks overwrite each other's, since touching fresh memory of this size costs more in page faults than the
    arithmetic.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple, Tensor] = {}
        self._owners: dict[int, nn.Module] = {}

    def tensor(self, role: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor to overwrite."""
        key = (role, tuple(shape), like.dtype, like.device)
        if key not in self._tensors:
            self._tensors[key] = like.new_empty(shape)
        return self._tensors[key]

    def take_over(self, tensor: Tensor, owner: nn.Module) -> bool:
        """Whether someone else filled the tensor last, or nobody; from now on it is the owner's."""
        before = self._owners.get(id(tensor))
        self._owners[id(tensor)] = owner
        return before is not owner


class AiTLayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32 whatever the model's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis."""
        if input.dtype == self.weight.dtype:
            return super().forward(input)  # the kernels keep float32 inside, and save two copies
        normalized = F.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normalized.to(input.dtype)


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
        windows = self._attend_in_windows(self._windowed_qkv(x, rows, columns), workspace)
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
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
        query, key = _normalize(query, scale.to(query.dtype)), _normalize(key)
        attended = attend(query, key, value, bias, scale=1.0, implementation=self.config._attn_implementation)
        return self.projection(attended.transpose(1, 2).flatten(2))

    def _windowed_qkv(self, x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values, each (B, rows, columns, heads, w^2, head_dim); keys in reverse order."""
        w = self.window
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).view(
            -1, rows, w, columns, w, 3, self.num_heads, x.shape[-1] // self.num_heads
        )
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
        weights: list[Any] = [first.weight, first.bias, second.weight]
        return self._kept.get(self._policy, role, weights, compute)

    def _compute_table(self) -> Tensor:
        """Table (heads, (2 * w - 1)^2) of `16 * sigmoid(MLP(coordinates))`, float32; the same under autocast."""
        with torch.autocast(self.coordinates.device.type, enabled=False):
            values = self.position_mlp(self.coordinates.to(self.q_bias.dtype))
        return 16 * values.float().sigmoid().T.contiguous()


def _normalize(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Multiply by `scale` over the L2 norm of the last axis plus the original's epsilon."""
    return x * (scale / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + NORM_EPSILON))


def _split_last(count: int) -> list[tuple[slice, bool]]:
    """Slices over all but the last window of an axis (if any) and over the last, with a flag for the latter."""
    last = (slice(count - 1, count), True)
    return [last] if count == 1 else [(slice(0, count - 1), False), last]


class AiTSwinV2Block(GradientCheckpointingLayer):
    """`x + norm(attention(x))`, then `x + norm(mlp(x))`: SwinV2's residual post-norm."""

    def __init__(self, config: AiTSwinV2Config, stage: int, shifts: bool, drop_path: float):
        super().__init__()
        width = config.embed_dim * 2**stage
        self.attention = AiTSwinV2Attention(config, stage, shifts)
        self.norm1 = AiTLayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), act_layer=nn.GELU)
        self.norm2 = AiTLayerNorm(width, eps=config.layer_norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, workspace: Workspace) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = x + self.drop_path(self.norm1(self.attention(x, workspace)))
        return x + self.drop_path(self.norm2(self.mlp(x)))

    def forward_tokens(self, x: Tensor, positions: Tensor) -> Tensor:
        """Some tokens (B, k, C) of a map that is one window to the same shape, see the attention."""
        x = x + self.drop_path(self.norm1(self.attention.forward_tokens(x, positions)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class AiTSwinV2Downsample(nn.Module):
    """Patch merging: 2 x 2 neighbours concatenated, reduced to twice the width, normalised."""

    def __init__(self, width: int, layer_norm_eps: float):
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = AiTLayerNorm(2 * width, eps=layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C)."""
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        neighbours = (x[:, row::2, column::2] for column in (0, 1) for row in (0, 1))
        return self.norm(self.reduction(torch.cat(tuple(neighbours), dim=-1)))


class AiTSwinV2Stage(nn.Module):
    """Blocks of one resolution, then patch merging (absent after the last stage)."""

    def __init__(self, config: AiTSwinV2Config, stage: int, drop_paths: list[float]):
        super().__init__()
        shifts = config.shift_windows[stage]
        self.blocks = nn.ModuleList(
            AiTSwinV2Block(config, stage, shifts and index % 2 == 1, rate) for index, rate in enumerate(drop_paths)
        )
        self.widest = int(config.embed_dim * 2**stage * config.mlp_ratio)
        # Runs the blocks with fewer tokens in the middle, see `hourglass_images`: (map, blocks, workspace) to the map.
        self.hourglass: Callable[..., Tensor] | None = None
        last = stage == len(config.depths) - 1
        self.downsample = None if last else AiTSwinV2Downsample(config.embed_dim * 2**stage, config.layer_norm_eps)

    def forward(self, x: Tensor, workspace: Workspace) -> Tensor:
        """(B, H, W, C) to the next stage's (B, H', W', C')."""
        images = _images_at_once(x, self.widest)
        own = False
        if self.hourglass is not None:
            x = torch.cat([self.hourglass(chunk, self.blocks, workspace) for chunk in x.split(images)])
        for block in self.blocks if self.hourglass is None else ():
            if images < x.shape[0]:  # len() would fix the batch of an exported program
                # The stage's input is the caller's, or a hook's, to keep; what follows is overwritten.
                target = x if own else torch.empty_like(x)
                for chunk, result in zip(x.split(images), target.split(images), strict=True):
                    result.copy_(block(chunk, workspace))
                x, own = target, True
            else:
                x = block(x, workspace)
        return x if self.downsample is None else self.downsample(x)


def _images_at_once(x: Tensor, widest: int) -> int:
    """How many images of x (B, H, W, C) a block should take at once, given the width of its widest tensor."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return x.shape[0]
    return max(1, CPU_CHUNK_BYTES // (x[0, ..., 0].numel() * widest * x.element_size()))


class AiTSwinV2Embeddings(nn.Module):
    """Patches to vectors: strided convolution, LayerNorm."""

    def __init__(self, config: AiTSwinV2Config):
        super().__init__()
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = AiTLayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / patch, W / patch, D); sides are zero-padded to whole patches."""
        patch = self.projection.stride[0]
        pixel_values = F.pad(pixel_values, (0, -pixel_values.shape[3] % patch, 0, -pixel_values.shape[2] % patch))
        return self.norm(self.projection(pixel_values).permute(0, 2, 3, 1))


class AiTSwinV2Backbone(PreTrainedModel):
    """Backbone of the task-solver; returns the last stage's map, normalised."""

    config: AiTSwinV2Config
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["AiTSwinV2Block"]

    def __init__(self, config: AiTSwinV2Config):
        super().__init__(config)
        total = sum(config.depths)
        rates = [config.drop_path_rate * index / max(total - 1, 1) for index in range(total)]
        starts = [sum(config.depths[:stage]) for stage in range(len(config.depths))]
        self.embeddings = AiTSwinV2Embeddings(config)
        self.stages = nn.ModuleList(
            AiTSwinV2Stage(config, stage, rates[start : start + depth])
            for stage, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
        )
        self.norm = AiTLayerNorm(config.num_features, eps=config.layer_norm_eps)
        self.channels = [config.num_features]
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers guesses this from the source text, where it looks for its own attention interface.
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, AiTSwinV2Attention):
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
            init.constant_(module.logit_scale, math.log(10.0))
            init.copy_(module.coordinates, relative_coordinates(module.window, module.pretrained_window))
            if module.shift:
                init.copy_(module.shift_masks, shift_masks(module.window, module.shift))

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.embeddings

    def forward(self, pixel_values: Tensor, **kwargs) -> BackboneOutput:
        """Map of an image of any size.

        Args:
            pixel_values: (B, C, H, W).
            kwargs: ignored, so that every AutoBackbone can be called alike.

        Returns:
            `feature_maps`, a tuple of one map (B, num_features, ceil(H / stride), ceil(W / stride)).
        """
        x = self.embeddings(pixel_values.to(self.norm.weight.dtype))
        workspace = Workspace()
        for stage in self.stages:
            x = stage(x, workspace)
        return BackboneOutput(feature_maps=(self.norm(x).permute(0, 3, 1, 2),))
