"""The paper's baseline tokenizer of depth: shrink bilinearly, bin linearly. Same interface as the VQ-VAE."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from .configuration_ait import AiTBinTokenizerConfig


class AiTBinTokenizer(PreTrainedModel):
    """Depth to bins of a shrunken map and back (paper, table 6); it has no parameters."""

    config: AiTBinTokenizerConfig
    base_model_prefix = "bin_tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: AiTBinTokenizerConfig):
        super().__init__(config)
        self.post_init()

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Bins (B, h, w) of depth maps (B, 1, H, W) in metres.

        Invalid pixels (0) have no part in the shrunken value; a token without a valid pixel gets bin 0.
        """
        size = [side // self.config.downsample_ratio for side in pixel_values.shape[2:]]
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
        return self._enlarge(self._centres(codes.device)[codes])

    def decode_soft(self, logits: Tensor) -> Tensor:
        """Depth maps (B, 1, H, W) in metres of bin logits (B, K, h, w): expected bin centres, enlarged bilinearly."""
        probabilities = (logits.float() * self.config.tau).softmax(dim=1)
        return self._enlarge(torch.einsum("bkhw,k->bhw", probabilities, self._centres(logits.device)))

    def _centres(self, device: torch.device) -> Tensor:
        width = self.config.max_value / self.config.num_codes
        return (torch.arange(self.config.num_codes, device=device, dtype=torch.float32) + 0.5) * width

    def _enlarge(self, depth: Tensor) -> Tensor:
        return F.interpolate(
            depth.unsqueeze(1), scale_factor=self.config.downsample_ratio, mode="bilinear", align_corners=False
        )
