"""Mask augmentation of the VQ-VAE's input: an exact share of square patches is set to 0 (AiT, arXiv 2301.02229).

The input is a map in tokenizer form (C, H, W). There 0 means invalid, or, of real values, what a network sees of a
pixel without a value.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2


class RandomPatchMask(v2.Transform):
    """Set exactly `ceil(ratio * patches)` randomly chosen patches to 0.

    The draw comes from torch's default generator. All `tv_tensors` of one call get the same mask; of
    plain tensors, as everywhere in torchvision, only the first is transformed.

    Args:
        patch_size: side of a patch in pixels.
        ratio: share of the patches, in [0, 1].

    Raises:
        ValueError: an argument is out of range; in a call, if the sides are not multiples of `patch_size`.
    """

    def __init__(self, patch_size: int = 16, ratio: float = 0.5) -> None:
        super().__init__()
        if patch_size < 1 or not 0 <= ratio <= 1:
            raise ValueError(
                f"patch_size must be at least 1 and ratio lie in [0, 1], got patch_size={patch_size}, ratio={ratio}."
            )
        self.patch_size = patch_size
        self.ratio = ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the patches to keep, as a pixel mask (H, W)."""
        height, width = v2.functional.get_size(flat_inputs[0])
        size = self.patch_size
        if height % size or width % size:
            raise ValueError(f"The sides of the input must be multiples of patch_size {size}, got {height} x {width}.")
        rows, columns = height // size, width // size
        kept = torch.ones(rows * columns)
        kept[torch.randperm(rows * columns)[: math.ceil(self.ratio * rows * columns)]] = 0
        return {"kept": F.interpolate(kept.view(1, 1, rows, columns), scale_factor=float(size))[0, 0]}

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Apply the mask to (..., H, W), all channels alike."""
        # Not a product: NaN marks pixels without a value, and NaN * 0 is NaN.
        masked = torch.where(params["kept"].to(inpt.device) > 0, inpt, 0)
        return tv_tensors.wrap(masked, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else masked
