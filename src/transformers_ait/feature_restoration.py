"""Modules of UniPixTask's dense decoder: compression of latent features, restoration of those of a task head."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_unipixtask import DenseDecoderConfig
from .layer_states_ait import LayerStates
from .modeling_token_decoder import AiTEncoderBlock, sine_table


def fit_map(x: Tensor, height: int, width: int) -> Tensor:
    """A map (B, C, h, w) at another size: coarser by averaging, finer bilinearly."""
    if tuple(x.shape[-2:]) == (height, width):
        return x
    if x.shape[-2] >= height and x.shape[-1] >= width:
        return F.adaptive_avg_pool2d(x, (height, width))
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


@torch.no_grad()
def init_convolution(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """PyTorch's default for convolutions, whatever their width."""
    fan_in = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight[:, 0].numel()
    init.uniform_(module.weight, -(fan_in**-0.5), fan_in**-0.5)
    if module.bias is not None:
        init.uniform_(module.bias, -(fan_in**-0.5), fan_in**-0.5)


class FeaturePyramid(nn.Module):
    """A 3 x 3 convolution of each backbone map, summed at one size (UniPixTask, section 4.1)."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(count, width, 3, padding=1) for count in channels)

    def forward(self, maps: Sequence[Tensor], size: int) -> Tensor:
        """z (B, width, size, size) of backbone maps (B, channels, h, w)."""
        pairs = zip(self.convolutions, maps, strict=True)
        return torch.stack([fit_map(convolution(x), size, size) for convolution, x in pairs]).sum(0)


class Compression(nn.Module):
    """3 x 3 convolution of stride 2, tanh, 1 x 1 convolution to the code width (table 8; the 1 x 1 without padding)."""

    def __init__(self, config: DenseDecoderConfig):
        super().__init__()
        self.downsample = nn.Conv2d(config.hidden_size, config.hidden_size, 3, stride=2, padding=1)
        self.projection = nn.Conv2d(config.hidden_size, config.code_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """z' (B, d, h, w) of z (B, width, 2 h, 2 w)."""
        return self.projection(self.downsample(x).tanh())


class MapTransformer(nn.Module):
    """Pre-norm transformer over all positions of a map, which a 2-d sine table tells apart."""

    def __init__(self, config: Any):
        super().__init__()
        self.blocks = nn.ModuleList(AiTEncoderBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, states: LayerStates | None = None) -> Tensor:
        """(B, width, h, w) to the same shape; `states` gathers what it asks for."""
        states = states or LayerStates()
        _, width, rows, columns = x.shape
        side = max(rows, columns)
        positions = sine_table(side, width).view(side, side, width)[:rows, :columns].flatten(0, 1).to(x)
        tokens = x.flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            states.note(tokens)
            tokens = block(tokens, states.attentions) if states.any else block(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, (rows, columns))


class ChannelRestoration(nn.Module):
    """Two 3 x 3 convolutions with tanh between, then a transformer: from d to the latent width (section 4.1)."""

    def __init__(self, config: DenseDecoderConfig):
        super().__init__()
        self.expand = nn.Conv2d(config.code_dim, config.hidden_size, 3, padding=1)
        self.mix = nn.Conv2d(config.hidden_size, config.hidden_size, 3, padding=1)
        self.transformer = MapTransformer(config)

    def forward(self, x: Tensor, states: LayerStates | None = None) -> Tensor:
        """(B, width, h, w) of code vectors (B, d, h, w)."""
        return self.transformer(self.mix(self.expand(x).tanh()), states)


class SpatialRestoration(nn.Module):
    """3 x 3 transposed convolution of stride 2, GroupNorm (table 8)."""

    def __init__(self, config: DenseDecoderConfig):
        super().__init__()
        width = config.hidden_size
        self.upsample = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.GroupNorm(config.num_groups, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, 2 h, 2 w) of (B, width, h, w)."""
        return self.norm(self.upsample(x))


class FeatureOutput(nn.Module):
    """3 x 3 convolution, tanh, and one 1 x 1 convolution per feature map of the task head (table 8).

    A map finer than the latent features has the channels of several pixels in its convolution's output (sub-pixel
    convolution); a coarser one is averaged before.

    Args:
        width: of the latent features.
        size: side of their map.
        shapes: (channels, height, width) of each feature map.
    """

    def __init__(self, width: int, size: int, shapes: Sequence[Sequence[int]]):
        super().__init__()
        self.shapes = [tuple(shape) for shape in shapes]
        self.factors = [max(-(-max(shape[1:]) // size), 1) for shape in self.shapes]  # rounded up
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.projections = nn.ModuleList(
            nn.Conv2d(width, channels * factor**2, 1)
            for (channels, *_), factor in zip(self.shapes, self.factors, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The task head's feature maps of latent features (B, width, size, size)."""
        mixed, found = self.mix(x).tanh(), []
        for projection, (_, height, width), factor in zip(self.projections, self.shapes, self.factors, strict=True):
            source = mixed if factor > 1 else fit_map(mixed, height, width)
            found.append(fit_map(F.pixel_shuffle(projection(source), factor), height, width))
        return tuple(found)


class DecodedMapping(nn.Module):
    """Channel restoration, spatial restoration, smooth transformer and output: all of g before the task head."""

    def __init__(self, config: DenseDecoderConfig):
        super().__init__()
        self.channel_restoration = ChannelRestoration(config)
        self.spatial_restoration = SpatialRestoration(config)
        self.smooth_transformer = MapTransformer(config)
        self.output = FeatureOutput(config.hidden_size, config.latent_size, config.feature_shapes)

    def forward(self, vectors: Tensor, states: LayerStates | None = None) -> tuple[Tensor, ...]:
        """The task head's feature maps of code vectors (B, h, w, d)."""
        x = self.channel_restoration(vectors.permute(0, 3, 1, 2), states)
        return self.output(self.smooth_transformer(self.spatial_restoration(x), states))


__all__ = ["Compression", "DecodedMapping", "FeaturePyramid", "fit_map", "init_convolution"]
