"""Draw every training augmentation on one rendered room, as one picture.

python training/show_augmentation.py --output docs/augmentation.png
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision import tv_tensors

from transformers_ait.data import SYNTHETIC_ROOMS_SEMANTIC_CLASSES, RoomFrame, render_room
from transformers_ait.data.augmentation_dense import (
    RandomBrightnessContrast,
    RandomGamma,
    RandomHueSaturationValue,
    dense_training_transform,
)
from transformers_ait.data.augmentation_instance import instance_training_transform
from transformers_ait.data.mask_crops import box_crop
from transformers_ait.data.patch_mask import RandomPatchMask
from transformers_ait.map_kinds_ait import IGNORED_CLASS, MAP_KINDS
from transformers_ait.visualization import colorize_map, draw_instances

ROOM = 2_000_000_029
SIDE = 240  # pixels of the windows and of the image's height
DEPTH_RANGE = (0.0, 6.0)  # metres shown
KINDS = {name: MAP_KINDS[name] for name in ("depth", "normals", "classes")}
Tile = tuple[str, np.ndarray]
Sample = tuple[Tensor, dict[str, Tensor]]


def pixels(image: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of an image (3, H, W) in [0, 1]."""
    return (image.as_subclass(Tensor).permute(1, 2, 0) * 255).round().byte().numpy()


def map_picture(name: str, native: Tensor) -> np.ndarray:
    """Colours of a native map; holes are grey."""
    low, high = DEPTH_RANGE if name == "depth" else (None, None)
    return np.asarray(colorize_map(native, name, SYNTHETIC_ROOMS_SEMANTIC_CLASSES, low, high))


def masked(image: Tensor, maps: dict[str, Tensor]) -> Sample:
    """The maps as the tokenizer of each gets them, under one mask."""
    classes = len(SYNTHETIC_ROOMS_SEMANTIC_CLASSES)
    forms = [tv_tensors.Mask(KINDS[name].to_tokenizer(native[None], classes)[0]) for name, native in maps.items()]
    depth, normals, scores = (x.as_subclass(Tensor) for x in RandomPatchMask(16, 0.5)(*forms))
    ids = torch.where((scores > 0).any(0), scores.argmax(0), IGNORED_CLASS)
    return image, {"depth": depth[0], "normals": normals, "classes": ids}


def dense_tiles(frame: RoomFrame) -> list[list[Tile]]:
    """A row of the image under each augmentation, and one of each map below it."""
    image = tv_tensors.Image(torch.from_numpy(frame.image).permute(2, 0, 1).float() / 255)
    maps = {
        "depth": torch.from_numpy(frame.depth),
        "normals": torch.from_numpy(frame.normals).permute(2, 0, 1),
        "classes": torch.from_numpy(frame.semantic),
    }
    image, maps = dense_training_transform(SIDE, KINDS, 0, 0, 0)(image, maps)
    steps: dict[str, Callable[..., Sample]] = {
        "as it is": lambda *pair: pair,
        "depth strip": dense_training_transform(SIDE, KINDS, 1, 0, 0),
        "flip": dense_training_transform(SIDE, KINDS, 0, 1, 0),
        "crop, scale 1.5": dense_training_transform(SIDE, KINDS, 0, 0, 0, scale=(1.5, 1.5)),
        "brightness, contrast": lambda image, maps: (RandomBrightnessContrast(0.4, 0.4)(image), maps),
        "gamma": lambda image, maps: (RandomGamma(0.5, 0.6)(image), maps),
        "hue, saturation, value": lambda image, maps: (RandomHueSaturationValue()(image), maps),
        "patch mask (tokenizers)": masked,
    }
    moved = {name: step(image, maps) for name, step in steps.items()}
    return [
        [(name, pixels(pair[0])) for name, pair in moved.items()],
        *([("", map_picture(name, pair[1][name])) for pair in moved.values()] for name in KINDS),
    ]


def instance_tiles(frame: RoomFrame) -> list[list[Tile]]:
    """One row: the objects under large-scale jitter, crop and flip, and one mask as the tokenizer gets it."""
    masks = torch.stack([torch.from_numpy(frame.instance_map == item.id) for item in frame.objects])
    boxes = torch.tensor([item.box for item in frame.objects], dtype=torch.float32)
    sample = {
        "image": tv_tensors.Image(torch.from_numpy(frame.image).permute(2, 0, 1)),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=masks.shape[1:]),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.arange(len(masks)),
    }
    names = [item.category for item in frame.objects]
    tiles = []
    for scale, flip in ((1.0, 0.0), (0.4, 0.0), (1.6, 0.0), (2.2, 0.0), (3.0, 0.0), (1.0, 1.0), (1.6, 1.0)):
        moved = instance_training_transform(320, (scale, scale), flip)(sample)
        shown = [names[number] for number in moved["labels"].tolist()]
        kept = [mask.numpy() for mask in moved["masks"].as_subclass(Tensor)]
        image = moved["image"].as_subclass(Tensor).permute(1, 2, 0).numpy()
        picture = np.asarray(draw_instances(image, shown, masks=kept))
        title = f"scale {scale:g}" + (", flip" if flip else "")
        canvas = np.full((320, 320, 3), 255, np.uint8)
        canvas[: picture.shape[0], : picture.shape[1]] = picture[:320, :320]
        tiles.append((title, canvas))
    chair = names.index("chair")
    crop = box_crop(masks[chair], boxes[chair], 64)[0]
    return [[*tiles, ("box crop (tokenizer)", (crop[..., None].repeat(1, 1, 3) * 255).byte().numpy())]]


def draw(rows: list[list[Tile]], path: Path) -> None:
    """Write the tiles as one picture."""
    figure = Figure(figsize=(2 * len(rows[0]), 1.75 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]))
    for places, tiles in zip(axes, rows, strict=True):
        for place, (title, picture) in zip(places, tiles, strict=True):
            place.imshow(picture)
            place.set_title(title, fontsize=8)
            place.axis("off")
    figure.savefig(path)


def main() -> None:
    """Render, augment, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("augmentation.png"))
    arguments = parser.parse_args()
    torch.manual_seed(1)
    frame = render_room(ROOM, height=SIDE, width=SIDE * 4 // 3)
    draw([*dense_tiles(frame), *instance_tiles(frame)], arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
