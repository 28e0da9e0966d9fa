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
from torchvision.transforms import v2

from transformers_ait.data import RoomFrame, render_room
from transformers_ait.data.augmentation_depth import (
    RandomBrightnessContrast,
    RandomDepthStrip,
    RandomGamma,
    RandomHueSaturationValue,
)
from transformers_ait.data.augmentation_instance import instance_training_transform
from transformers_ait.data.mask_crops import box_crop
from transformers_ait.data.patch_mask import RandomPatchMask
from transformers_ait.visualization import colorize_depth, draw_instances

ROOM = 2_000_000_029
SIDE = 240  # pixels of the windows and of the image's height
DEPTH_RANGE = (0.0, 6.0)  # metres shown
Tile = tuple[str, np.ndarray]


def pixels(image: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of an image (3, H, W) in [0, 1]."""
    return (image.as_subclass(Tensor).permute(1, 2, 0) * 255).round().byte().numpy()


def depth_pictures(depth: Tensor) -> np.ndarray:
    """Colours of a depth map (1, H, W); holes are grey."""
    return np.asarray(colorize_depth(depth[0].as_subclass(Tensor), *DEPTH_RANGE))


def depth_tiles(frame: RoomFrame) -> list[list[Tile]]:
    """Two rows: the image under each augmentation, and the depth map beside it."""
    image = tv_tensors.Image(torch.from_numpy(frame.image).permute(2, 0, 1).float() / 255)
    depth = tv_tensors.Mask(torch.from_numpy(frame.depth)[None])
    steps: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "as it is": lambda *pair: pair,
        "depth strip": RandomDepthStrip(1.0),
        "flip": v2.RandomHorizontalFlip(1.0),
        "crop": v2.RandomCrop(SIDE - 60),
        "brightness, contrast": RandomBrightnessContrast(0.4, 0.4),
        "gamma": RandomGamma(0.5, 0.6),
        "hue, saturation, value": RandomHueSaturationValue(),
        "patch mask (tokenizer)": lambda image, depth: (image, RandomPatchMask(16, 0.5)(depth)),
    }
    moved = {name: step(image, depth) for name, step in steps.items()}
    return [
        [(name, pixels(pair[0])) for name, pair in moved.items()],
        [("", depth_pictures(pair[1])) for pair in moved.values()],
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
    draw([*depth_tiles(frame), *instance_tiles(frame)], arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
