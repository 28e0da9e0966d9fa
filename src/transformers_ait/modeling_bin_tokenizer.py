"""The paper's baseline tokenizer, for every kind of map: shrink bilinearly, bin linearly. Interface of the VQ-VAE."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_tokenizers import AiTBinTokenizerConfig
from .pretrained_ait import AiTBaseModel

SMALLEST_PROBABILITY = 1e-6  # of a class; its logarithm must be finite


def _bin_centres(config: AiTBinTokenizerConfig) -> Tensor:
    """What each bin decodes to: (K,) for maps of one channel, (K, C) for others."""
    if config.kind.has_scores:
        return torch.eye(config.num_codes)  # type: ignore[arg-type]
    low, high = config.bounds
    side = config.bins_per_axis
    ticks = (torch.arange(side, dtype=torch.float32) + 0.5) * ((high - low) / side) + low
    if config.num_channels == 1:
        return ticks
    centres = torch.cartesian_prod(*[ticks] * config.num_axes)
    if config.num_axes == config.num_channels:
        return centres
    # Of normals, z follows from the length of 1; visible surfaces face the camera, against the axis z.
    z = -(1 - centres.square().sum(1)).clamp(min=0).sqrt()
    return F.normalize(torch.cat((centres, z[:, None]), dim=1), dim=1)


@dataclass
class AiTBinTokenizerOutput(ModelOutput):
    """Output of `AiTBinTokenizer`.

    Args:
        reconstruction: (B, C, H, W), what the bins decode to.
        codes: (B, h, w) int64.
    """

    reconstruction: Tensor | None = None
    codes: Tensor | None = None


class AiTBinTokenizer(AiTBaseModel):
    """Maps to bins of a shrunken map and back (baseline of arXiv 2301.02229).

    It has no parameters, so there is nothing to train, and no layers whose states or attentions it could return.
    """

    config: AiTBinTokenizerConfig
    centres: Tensor
    base_model_prefix = "bin_tokenizer"
    has_attentions = False

    def __init__(self, config: AiTBinTokenizerConfig):
        super().__init__(config)
        # Persistent, because a checkpoint must hold something.
        self.register_buffer("centres", _bin_centres(config))
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the bin centres; transformers' own looks for a parameter."""
        return self.centres.dtype

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init.copy_(self.centres, _bin_centres(self.config))

    def forward(
        self, pixel_values: Tensor, return_dict: bool | None = None, **kwargs: Any
    ) -> AiTBinTokenizerOutput | tuple:
        """Bins of maps, and what is left of the maps: `encode`, then `decode`.

        Args:
            pixel_values: (B, C, H, W) in tokenizer form.
            return_dict: False returns a tuple.
            kwargs: what transformers may hand to any model; it changes nothing here.

        Raises:
            TypeError: another argument.
            ValueError: the shape does not fit the downsample ratio.
        """
        self.check_kwargs(kwargs)
        codes = self.encode(pixel_values)
        return self.as_asked(AiTBinTokenizerOutput(reconstruction=self.decode(codes), codes=codes), return_dict)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Bins (B, h, w) of maps (B, C, H, W) in tokenizer form (see `map_kinds_ait`).

        Invalid pixels have no part in the shrunken value; a token without a valid pixel gets the bin of 0, or class 0.
        """
        ratio, channels = self.config.downsample_ratio, self.config.num_channels
        if (
            pixel_values.ndim != 4
            or pixel_values.shape[1] != channels
            or any(side % ratio for side in pixel_values.shape[2:])
        ):
            raise ValueError(
                f"pixel_values must be (batch, {channels}, height, width) with sides that are multiples of {ratio}, "
                f"got {tuple(pixel_values.shape)}; pad or crop the maps."
            )
        if self.config.kind.has_scores:
            return F.avg_pool2d(pixel_values, ratio).argmax(dim=1)
        size = [side // ratio for side in pixel_values.shape[2:]]
        valid = self.config.kind.valid(pixel_values).to(pixel_values.dtype)
        total, weight = (
            F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
            for x in (self.config.kind.fill(pixel_values) * valid, valid)
        )
        return self._linear_bins(total / weight.clamp(min=1e-6))

    def decode(self, codes: Tensor) -> Tensor:
        """Maps (B, C, H, W) in tokenizer form of bins (B, h, w): bin centres, enlarged bilinearly."""
        return self._enlarge(self.centres[codes])

    def decode_soft(self, logits: Tensor) -> Tensor:
        """Maps (B, C, H, W) of bin logits (B, K, h, w): expected bin centres, enlarged bilinearly."""
        probabilities = (logits.float() * self.config.tau).softmax(dim=1)
        equation = "bkhw,k->bhw" if self.centres.ndim == 1 else "bkhw,kc->bhwc"
        return self._enlarge(torch.einsum(equation, probabilities, self.centres.float()))

    def _linear_bins(self, mean: Tensor) -> Tensor:
        """Bins (B, h, w) of values (B, C, h, w), the first channel's counting most."""
        if self.config.num_axes != self.config.num_channels:
            mean = F.normalize(mean, dim=1)
        (low, high), side = self.config.bounds, self.config.bins_per_axis
        bins = ((mean - low) / (high - low) * side).long().clamp(0, side - 1)
        code = bins[:, 0]
        for axis in range(1, self.config.num_axes):
            code = code * side + bins[:, axis]
        return code

    def _enlarge(self, values: Tensor) -> Tensor:
        maps = values.unsqueeze(1) if values.ndim == 3 else values.permute(0, 3, 1, 2)
        maps = F.interpolate(maps, scale_factor=self.config.downsample_ratio, mode="bilinear", align_corners=False)
        # Scores of classes are logarithms of probabilities, here as everywhere.
        return maps.clamp(min=SMALLEST_PROBABILITY).log() if self.config.kind.has_scores else maps
