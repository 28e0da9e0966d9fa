"""The Swin V2 backbone, plainly."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from .layers import OriginalConfig, Tensors, plain_layer_norm, plain_linear, plain_mlp

REGION_MASK_VALUE = -100.0
COSINE_EPSILON = 5e-5


@lru_cache(maxsize=16)
def relative_tables(
    window: int, pretrained_window: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-spaced offsets ((2w-1)^2, 2) and, for each (query, key) of a window, the row that holds theirs (w^2, w^2)."""
    offsets = torch.arange(1 - window, window, device=device).to(dtype)
    grid = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1) / (pretrained_window - 1) * 8
    table = torch.sign(grid) * torch.log2(1 + grid.abs()) / math.log2(8)
    steps = torch.arange(window, device=device)
    cells = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2)
    difference = cells[:, None] - cells[None, :] + window - 1
    return table.reshape(-1, 2), difference[..., 0] * (2 * window - 1) + difference[..., 1]


def plain_position_bias(tensors: Tensors, name: str, window: int, pretrained_window: int) -> torch.Tensor:
    """Continuous position bias of the attention layer `name`, shape (heads, window^2, window^2)."""
    weight = tensors[f"{name}.rpe_mlp.0.weight"]
    table, index = relative_tables(window, pretrained_window, weight.device, weight.dtype)
    hidden = F.relu(plain_linear(tensors, f"{name}.rpe_mlp.0", table))
    values = plain_linear(tensors, f"{name}.rpe_mlp.2", hidden)
    return 16 * torch.sigmoid(values[index].permute(2, 0, 1))


def _window_attention(
    tensors: Tensors, name: str, windows: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Cosine attention in windows (images, windows, positions, channels); mask (windows, positions, positions)."""
    images, count, positions, channels = windows.shape
    heads = bias.shape[0]
    q_bias, v_bias = tensors[f"{name}.q_bias"], tensors[f"{name}.v_bias"]
    qkv = F.linear(windows, tensors[f"{name}.qkv.weight"], torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]))
    q, k, v = qkv.view(images, count, positions, 3, heads, channels // heads).permute(3, 0, 1, 4, 2, 5)
    q = q / (q.norm(dim=-1, keepdim=True) + COSINE_EPSILON)
    k = k / (k.norm(dim=-1, keepdim=True) + COSINE_EPSILON)
    scale = tensors[f"{name}.logit_scale"].clamp(max=math.log(100.0)).exp()
    logits = q @ k.transpose(-2, -1) * scale + bias
    if mask is not None:
        logits = logits + mask[:, None]
    out = (torch.softmax(logits, dim=-1) @ v).transpose(2, 3).reshape(images, count, positions, channels)
    return plain_linear(tensors, f"{name}.proj", out)


def _to_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """Cut (B, H, W, C), multiples of the window, into (B, windows, window^2, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def _from_windows(windows: torch.Tensor, window: int, height: int, width: int) -> torch.Tensor:
    batch, channels = windows.shape[0], windows.shape[-1]
    x = windows.view(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def _region_mask(height: int, width: int, window: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """Mask (windows, positions, positions): -100 between positions that were no neighbours before the roll."""

    def regions(size: int) -> torch.Tensor:
        position = torch.arange(size, device=like.device)
        return (position >= size - window).long() + (position >= size - shift).long()

    region = (3 * regions(height)[:, None] + regions(width)[None, :])[None, :, :, None]
    region = _to_windows(region, window)[0, :, :, 0]
    different = region[:, :, None] != region[:, None, :]
    return different.to(like.dtype) * REGION_MASK_VALUE


def plain_shift_mask(backbone: OriginalConfig, stage: int, x: torch.Tensor) -> torch.Tensor | None:
    """Mask (windows, positions, positions) of the shifting blocks of a stage on a map x; None if it does not shift."""
    window = backbone["window_size"][stage]
    height, width = (side + -side % window for side in x.shape[1:3])
    return _region_mask(height, width, window, window // 2, x) if backbone["use_shift"][stage] else None


def plain_swin_block(
    tensors: Tensors, backbone: OriginalConfig, stage: int, block: int, x: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """One block of one stage on a map (B, H, W, C): pad, roll, attend in windows, roll back, crop; then the MLP.

    Args:
        tensors: original tensors, names starting with `backbone.`.
        backbone: the original configuration's section `backbone`.
        stage: index of the stage.
        block: index of the block in its stage; odd ones shift where the stage does.
        x: map (B, H, W, C).
        mask: `plain_shift_mask` of the stage.

    Returns:
        Map (B, H, W, C).
    """
    name = f"backbone.layers.{stage}.blocks.{block}"
    window, pretrained_window = backbone["window_size"][stage], backbone["pretrain_window_size"][stage]
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    shifts = backbone["use_shift"][stage] and block % 2 == 1
    shift = window // 2 if shifts else 0
    bias = plain_position_bias(tensors, f"{name}.attn", window, pretrained_window)
    windows = _to_windows(torch.roll(padded, (-shift, -shift), dims=(1, 2)), window)
    attended = _window_attention(tensors, f"{name}.attn", windows, bias, mask if shifts else None)
    attended = torch.roll(_from_windows(attended, window, *padded.shape[1:3]), (shift, shift), dims=(1, 2))
    x = x + plain_layer_norm(tensors, f"{name}.norm1", attended[:, :height, :width], 1e-6)
    return x + plain_layer_norm(tensors, f"{name}.norm2", plain_mlp(tensors, f"{name}.mlp", x), 1e-6)


def plain_patch_embedding(tensors: Tensors, pixel_values: torch.Tensor) -> torch.Tensor:
    """Map (B, H / 4, W / 4, C) of images (B, 3, H, W)."""
    name = "backbone.patch_embed.proj"
    x = F.conv2d(pixel_values, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=4)
    return plain_layer_norm(tensors, "backbone.patch_embed.norm", x.permute(0, 2, 3, 1), 1e-6)


def plain_patch_merging(tensors: Tensors, stage: int, x: torch.Tensor) -> torch.Tensor:
    """Map (B, H / 2, W / 2, 2C) between `stage` and the next, of a map (B, H, W, C)."""
    name = f"backbone.layers.{stage}.downsample"
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return plain_layer_norm(
        tensors, f"{name}.norm", plain_linear(tensors, f"{name}.reduction", torch.cat(corners, -1)), 1e-6
    )


def plain_backbone(tensors: Tensors, config: OriginalConfig, pixel_values: torch.Tensor) -> torch.Tensor:
    """Normalised map of the last stage.

    Args:
        tensors: original tensors, names starting with `backbone.`.
        config: original model configuration (`backbone`, optionally `padto`).
        pixel_values: images (B, 3, H, W); zero-padded at bottom and right to `padto` if that is larger.

    Returns:
        Map (B, 8 * embed_dim, H / 32, W / 32).
    """
    backbone, side = config["backbone"], config.get("padto", 0)
    height, width = pixel_values.shape[-2:]
    x = plain_patch_embedding(tensors, F.pad(pixel_values, (0, max(side - width, 0), 0, max(side - height, 0))))
    for stage, depth in enumerate(backbone["depths"]):
        if stage > 0:
            x = plain_patch_merging(tensors, stage - 1, x)
        mask = plain_shift_mask(backbone, stage, x)
        for block in range(depth):
            x = plain_swin_block(tensors, backbone, stage, block, x, mask)
    return plain_layer_norm(tensors, f"backbone.norm{len(backbone['depths']) - 1}", x, 1e-6).permute(0, 3, 1, 2)
