"""Processors, maps of every kind, and what a perfect model would predict, shared by the tests of dense tasks."""

import numpy as np
import torch
import torch.nn.functional as F

from transformers_ait import AiTDenseImageProcessor

SIDE = 24
NUM_CLASSES = 5
# Neither sorted nor with depth first: the order decides the tasks' rows.
KINDS = {"semantic": "classes", "depth": "depth", "normals": "normals", "albedo": "values"}


def small(**kwargs):
    return AiTDenseImageProcessor(**{"size": {"height": SIDE, "width": SIDE}, "map_kinds": KINDS, **kwargs})


def single_view(**kwargs):
    return small(num_windows=1, do_flip_augment=False, **kwargs)


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def unit_vectors(height, width, seed=0):
    vectors = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(vectors, dim=0)


def maps_of(height, width):
    """A true map of every kind, with invalid pixels."""
    generator = torch.Generator().manual_seed(3)
    maps = {
        "semantic": torch.randint(NUM_CLASSES, (height, width), generator=generator),
        "depth": 1 + torch.rand(height, width, generator=generator),
        "normals": unit_vectors(height, width),
        "albedo": torch.randn(2, height, width, generator=generator),
    }
    for task, invalid in (("semantic", 255), ("depth", 0.0), ("normals", 0.0), ("albedo", torch.nan)):
        maps[task][..., :2, :3] = invalid
    return maps


def scene(height, width):
    """An image whose colours encode a class, and a normal per pixel."""
    classes = torch.randint(NUM_CLASSES, (height, width), generator=torch.Generator().manual_seed(0))
    return torch.stack([classes * 40, (classes * 77) % 256, (classes * 131 + 7) % 256]).to(torch.uint8)


def perfect_outputs(pixel_values, num_windows, negate_x=True):
    """Predictions by colour alone, as of a perfect model; mirrored views show a mirrored world."""
    views = pixel_values if pixel_values.ndim == 5 else pixel_values[:, None]
    normals = F.normalize(views * 2 - 1, dim=-3)
    if negate_x:
        normals[:, num_windows:, 0] *= -1
    classes = (views[:, :, 0] * 255 / 40).round().long().clamp(max=NUM_CLASSES - 1)
    maps = {
        "depth": 1 + views.mean(-3),
        "normals": 7 * normals,
        "semantic": 9 * F.one_hot(classes, NUM_CLASSES).movedim(-1, -3).float(),
        "albedo": views.clone(),
    }
    return maps if pixel_values.ndim == 5 else {task: value[:, 0] for task, value in maps.items()}


def expected_maps(image):
    colours = image / 255
    return {
        "depth": 1 + colours.mean(0),
        "normals": F.normalize(colours * 2 - 1, dim=0),
        "semantic": (image[0] / 40).round().long(),
        "albedo": colours,
    }
