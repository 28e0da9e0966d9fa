"""The paper's baseline tokenizer of depth: shrink bilinearly, bin linearly. Same interface as the VQ-VAE."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_ait import AiTBinTokenizerConfig


def _bin_centres(config: AiTBinTokenizerConfig) -> Tensor:
    return (torch.arange(config.num_codes, dtype=torch.float32) + 0.5) * (config.max_value / config.num_codes)


class AiTBinTokenizer(PreTrainedModel):
    """Depth to bins of a shrunken map and back (baseline of arXiv 2301.02229); it has no parameters."""

    config: AiTBinTokenizerConfig
    centres: Tensor
    base_model_prefix = "bin_tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # It has no attention; the task-solver that holds it hands its setting down.
    _supports_sdpa = True

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

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Bins (B, h, w) of depth maps (B, 1, H, W) in metres.

        Invalid pixels (0) have no part in the shrunken value; a token without a valid pixel gets bin 0.
        """
        ratio = self.config.downsample_ratio
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 1 or any(side % ratio for side in pixel_values.shape[2:]):
            raise ValueError(
                f"pixel_values must be (batch, 1, height, width) with sides that are multiples of {ratio}, got "
                f"{tuple(pixel_values.shape)}; pad or crop the maps."
            )
        size = [side // ratio for side in pixel_values.shape[2:]]
        valid = (pixel_values > 0).to(pixel_values.dtype)
        total, weight = (
            F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
            for x in (pixel_values * valid, valid)
        )
        mean = total / weight.clamp(min=1e-6)
        bins = (mean / self.config.max_value * self.config.num_codes).long()
        return bins.clamp(0, self.config.num_codes - 1).squeeze(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Depth maps (B, 1, H, W) in metres of bins (B, h, w): bin centres, enlarged bilinearly."""
        return self._enlarge(self.centres[codes])

    def decode_soft(self, logits: Tensor) -> Tensor:
        """Depth maps (B, 1, H, W) in metres of bin logits (B, K, h, w): expected bin centres, enlarged bilinearly."""
        probabilities = (logits.float() * self.config.tau).softmax(dim=1)
        return self._enlarge(torch.einsum("bkhw,k->bhw", probabilities, self.centres.float()))

    def _enlarge(self, depth: Tensor) -> Tensor:
        return F.interpolate(
            depth.unsqueeze(1), scale_factor=self.config.downsample_ratio, mode="bilinear", align_corners=False
        )
