"""Files of ADE20K's scene parsing benchmark as distributed: pairs of image and annotation, class ids, class names."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from ..map_kinds_ait import IGNORED_CLASS
from .image_files import (
    Stamp,
    evenly_spaced,
    list_files,
    load_image,
    name_first,
    require_complete_images,
    require_files,
)

ADE20K_CLASSES: tuple[str, ...] = (
    *("wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet"),
    *("sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water"),
    *("painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk"),
    *("rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard"),
    *("chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path"),
    *("stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase"),
    *("blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm"),
    *("kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light"),
    *("truck", "tower", "chandelier", "awning", "streetlight", "booth", "television", "airplane", "dirt track"),
    *("apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van"),
    *("ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel"),
    *("basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank"),
    *("trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture"),
    *("hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor"),
    *("bulletin board", "shower", "radiator", "glass", "clock", "flag"),
)
"""Names of the ids in the column `semantic`: of each class the first of the names in `objectInfo150.txt`."""

SPLIT_FOLDERS = {"train": "training", "validation": "validation"}
IMAGES, ANNOTATIONS, OBJECTS = "images", "annotations", "objectInfo150.txt"
UNPACK = "unpack ADEChallengeData2016.zip again, and name the folder ADEChallengeData2016 that it makes"


@dataclass(frozen=True)
class ScenePair:
    """An image and its annotation; paths relative to the root folder, with "/"."""

    image: str
    annotation: str


@dataclass(frozen=True)
class ScenePairs:
    """Pairs of each split that there is, in the order of their names, and the stamps of their files."""

    pairs: dict[str, list[ScenePair]]
    stamps: dict[str, Stamp]


def find_scenes(root: str) -> ScenePairs:
    """Pairs of `images/<split>/NAME.jpg` and `annotations/<split>/NAME.png`.

    Args:
        root: the folder `ADEChallengeData2016`.

    Raises:
        FileNotFoundError: a folder, an image or an annotation is missing, or there is no pair.
    """
    missing = [name for name in (IMAGES, ANNOTATIONS) if not os.path.isdir(os.path.join(root, name))]
    if missing:
        inside = name_first(sorted(os.listdir(root))) or "nothing"
        raise FileNotFoundError(
            f"there is no folder {missing[0]!r} in data_dir={root!r}, which holds {inside}: {UNPACK}"
        )
    pairs: dict[str, list[ScenePair]] = {}
    stamps: dict[str, Stamp] = {}
    for split, folder in SPLIT_FOLDERS.items():
        images, annotations = (
            _by_name(root, f"{place}/{folder}", suffix) for place, suffix in ((IMAGES, ".jpg"), (ANNOTATIONS, ".png"))
        )
        names = sorted(images.keys() | annotations.keys())
        absent = [f"{IMAGES}/{folder}/{name}.jpg" for name in names if name not in images]
        absent += [f"{ANNOTATIONS}/{folder}/{name}.png" for name in names if name not in annotations]
        fix = f"Every image needs its annotation, and the other way round: {UNPACK}"
        require_files(absent, 2 * len(names), root, fix)
        if names:
            pairs[split] = [ScenePair(images[name][0], annotations[name][0]) for name in names]
            stamps.update(images.values())
            stamps.update(annotations.values())
    if not pairs:
        raise FileNotFoundError(
            f"no images in data_dir={root!r}: expected {IMAGES}/training/*.jpg, {IMAGES}/validation/*.jpg and their "
            f"{ANNOTATIONS}; {UNPACK}"
        )
    return ScenePairs(pairs, stamps)


def _by_name(root: str, folder: str, suffix: str) -> dict[str, tuple[str, Stamp]]:
    """Path and stamp of a folder's files of this suffix by their names without it."""
    files = list_files(root, folder, recursive=False).items()
    return {PurePosixPath(path).stem: (path, stamp) for path, stamp in files if path.endswith(suffix)}


def read_class_names(root: str) -> list[str]:
    """The first name of each class in `objectInfo150.txt`, which are those of `ADE20K_CLASSES` in their order.

    Its lines are `Idx, Ratio, Train, Val, Name` between tabs; a name is a list of synonyms between commas.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, or a line is not that of its class.
    """
    path = os.path.join(root, OBJECTS)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist, the table of the classes: {UNPACK}")
    with open(path, "rb") as file:
        content = file.read()
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): {UNPACK}") from error
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip()]
    if len(rows) != len(ADE20K_CLASSES) + 1 or rows[0][0] != "Idx":
        raise ValueError(
            f"{path} must have a head line and {len(ADE20K_CLASSES)} classes, and has {len(rows)} lines: {UNPACK}"
        )
    for number, (row, name) in enumerate(zip(rows[1:], ADE20K_CLASSES, strict=True), 1):
        if row[0] != str(number) or row[-1].partition(",")[0] != name:
            raise ValueError(
                f"{path}: the line of class {number} must begin with {number} and end with {name!r}, got "
                f"{' '.join(row)!r:.100}; {UNPACK}"
            )
    return list(ADE20K_CLASSES)


def check_scenes(root: str, pairs: Sequence[ScenePair], whole: bool) -> None:
    """Look at the files before any time is spent on them.

    Args:
        root: folder that the paths are relative to.
        pairs: of one split.
        whole: whether to look for truncation in every file, not only in a sample.

    Raises:
        OSError: a file cannot be decoded.
        ValueError: as `read_annotation`.
    """
    if whole:
        require_complete_images([os.path.join(root, path) for pair in pairs for path in (pair.image, pair.annotation)])
    for pair in evenly_spaced(pairs):
        load_image(os.path.join(root, pair.image))
        read_annotation(root, pair)


def read_annotation(root: str, pair: ScenePair) -> np.ndarray:
    """Class ids (H, W) uint8 of a pair, counted from 0, 255 = other or unlabelled, which the files count as 0.

    Raises:
        OSError: a file cannot be decoded.
        ValueError: the annotation is not of its image's size, has several channels, or holds an id over 150.
    """
    path = os.path.join(root, pair.annotation)
    annotation = load_image(path)
    with Image.open(os.path.join(root, pair.image)) as image:
        size = image.size
    if annotation.size != size:
        raise ValueError(
            f"{path} is {annotation.size[0]} x {annotation.size[1]} but {pair.image} is {size[0]} x {size[1]}: an "
            f"annotation must be aligned with its image, pixel by pixel; {UNPACK}"
        )
    if annotation.mode not in ("L", "P"):
        raise ValueError(
            f"{path} has mode {annotation.mode}, but annotations have one channel of 8 bits; those of the full ADE20K, "
            "*_seg.png, are others: take ADEChallengeData2016.zip"
        )
    ids = np.array(annotation)
    if ids.max() > len(ADE20K_CLASSES):
        raise ValueError(
            f"{path} holds the id {ids.max()}, but ids are 0 for other and 1 to {len(ADE20K_CLASSES)}; if they count "
            f"from 0 with 255 for other, add 1 as uint8, else {UNPACK}"
        )
    return np.where(ids == 0, IGNORED_CLASS, ids - 1).astype(np.uint8)


def png_bytes(ids: np.ndarray) -> bytes:
    """(H, W) uint8 to the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()
