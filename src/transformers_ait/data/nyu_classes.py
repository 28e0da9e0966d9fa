"""Semantic labels of NYU Depth v2 in the usual 40 classes, as `labels40_*.png` hold them."""

import numpy as np
from PIL import Image

from ..map_kinds_ait import IGNORED_CLASS

NYU40_CLASSES: tuple[str, ...] = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box"),
    *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
    *("otherstructure", "otherfurniture"),
)
"""Names of the ids in the column `semantic`, spelt as usual. The last of the 40, `otherprop`, is no class to learn: the
files use its id for unlabelled pixels too."""

OTHERPROP = len(NYU40_CLASSES)


def semantic_array(labels: Image.Image, name: str) -> np.ndarray:
    """Decoded label file, class - 1 with `otherprop` and unlabelled pixels as 39, to ids of `NYU40_CLASSES`.

    Args:
        labels: the image.
        name: what to call it.

    Returns:
        (H, W) uint8 ids, 255 = invalid.

    Raises:
        ValueError: if the image does not have one channel of 8 bits, or holds another id.
    """
    if labels.mode not in ("L", "P"):
        raise ValueError(
            f"labels must be an 8-bit PNG of one channel, but {name} has mode {labels.mode}: write class ids as uint8, "
            "not as colours"
        )
    ids = np.array(labels)
    wrong = ids[(ids > OTHERPROP) & (ids != IGNORED_CLASS)]
    if wrong.size:
        raise ValueError(
            f"labels must be NYU's 40 classes counted from 0, so 0 to {OTHERPROP}, and {IGNORED_CLASS} where unknown, "
            f"but {name} holds {wrong.max()}; if they count from 1 with 0 for unlabelled, subtract 1 as uint8"
        )
    ids[ids == OTHERPROP] = IGNORED_CLASS
    return ids
