"""Where the training of a dense decoder starts: scales and codes that fit what flows through it."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ...modeling_dense_decoder import DenseDecoderModel
from .dense_data import DenseRows

NUM_IMAGES = 64
OUTPUT_SCALE = 0.5
"""Standard deviation of restored features at the start, times the teacher's: what is not learned yet is error too."""
SMALLEST = 1e-6


def first_images(rows: DenseRows, count: int = NUM_IMAGES) -> list[Tensor]:
    """The first images (3, H, W) uint8 of training data, streamed or not."""
    indices = range(min(count, len(rows))) if rows.stream is None else islice(rows.stream.read(0, 0), count)
    return [rows.image(index) for index in indices]


@torch.no_grad()
def fit_scales(model: DenseDecoderModel, pixel_values: Tensor, teacher_features: Sequence[Tensor]) -> None:
    """Scale a new dense decoder by data, layer by layer (as LSUV, arXiv 1511.06422), and take its codes from it.

    Backbones and task heads have maps of any size. Without this, large ones saturate the first tanh, what is restored
    is many times too small, and the encoder gives up telling images apart before the decoder has caught up: nearly all
    positions then have one code.

    Args:
        model: the dense decoder; its layers before the codes, its codebook and its last convolutions are changed.
        pixel_values: (B, 3, S, S) images, of several scenes.
        teacher_features: the teacher's maps of them.
    """
    encoder: Any = model.encoder
    training = model.training
    model.eval()
    latent = encoder.pyramid(encoder.backbone(pixel_values).feature_maps, encoder.size)
    for convolution in encoder.pyramid.convolutions:
        _scale(convolution, 1 / latent.std().clamp(min=SMALLEST), 0.0)
    vectors = encoder(pixel_values).flatten(0, 2)
    gain = 1 / vectors.std(0).clamp(min=SMALLEST)
    _scale(encoder.compression.projection, gain, -gain * vectors.mean(0))
    vectors = encoder(pixel_values)
    model.quantizer.restart_dead_codes(vectors.flatten(0, 2), float("inf"))
    restored = model.decoder(model.quantizer(vectors)[1])
    projections: Any = model.decoder.output.projections
    for projection, mine, true in zip(projections, restored, teacher_features, strict=True):
        gain = OUTPUT_SCALE * _spread(true) / _spread(mine).clamp(min=SMALLEST)
        shift = true.mean((0, 2, 3)) - gain * mine.mean((0, 2, 3))
        per_channel = projection.out_channels // len(gain)  # sub-pixels, channel by channel
        _scale(projection, gain.repeat_interleave(per_channel), shift.repeat_interleave(per_channel))
    model.train(training)


def _spread(maps: Tensor) -> Tensor:
    """Standard deviation (C,) of maps (B, C, h, w)."""
    return maps.float().std((0, 2, 3))


def _scale(convolution: Any, gain: Tensor, shift: Tensor | float) -> None:
    """Have a convolution give `gain` times its output plus `shift`, both single or by channel."""
    convolution.weight.mul_(gain.view(-1, 1, 1, 1))
    convolution.bias.mul_(gain).add_(shift)
