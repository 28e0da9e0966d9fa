"""Images and depth maps of a user's own, in two folders, matched by name; depth of any unit to metres."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from .image_files import Stamp, evenly_spaced, list_files, load_image, name_first, require_complete_images

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
DEPTH_SUFFIXES = (".npy", ".pfm", ".png", ".tif", ".tiff")
SPLITS = ("train", "validation", "test")
DEPTH_UNITS = ("millimetres", "metres", "inverse")

MIN_MEDIAN, MAX_MEDIAN = 0.05, 500.0
"""Metres between which the typical distance in photographs lies, from tables to streets."""


@dataclass(frozen=True)
class DepthPair:
    """An image and its depth map; paths relative to the root folder, with "/"."""

    image: str
    depth: str


@dataclass(frozen=True)
class DepthPairs:
    """Pairs of each split that there is, in the order of their names, and the stamps of their files."""

    pairs: dict[str, list[DepthPair]]
    stamps: dict[str, Stamp]


def find_pairs(root: str, images: str, depths: str) -> DepthPairs:
    """Pairs of `<images>/NAME.*` and `<depths>/NAME.*`, in folders named like splits or, as `train`, at the root.

    Args:
        root: folder that holds both folders, or `train`, `validation` and `test` with both.
        images: name of the folder of images; folders inside are searched too.
        depths: name of the folder of depth maps.

    Raises:
        FileNotFoundError: a folder or a file's counterpart is missing, or there is no pair.
        ValueError: two files of one folder have the same name up to their suffix.
    """
    inside = [split for split in SPLITS if os.path.isdir(os.path.join(root, split, images))]
    folders = {split: split for split in inside} or {"train": ""}
    pairs: dict[str, list[DepthPair]] = {}
    stamps: dict[str, Stamp] = {}
    for split, folder in folders.items():
        found = {}
        for name, suffixes in ((images, IMAGE_SUFFIXES), (depths, DEPTH_SUFFIXES)):
            path = f"{folder}/{name}" if folder else name
            if not os.path.isdir(os.path.join(root, path)):
                content = name_first(sorted(os.listdir(root))) or "nothing"
                raise FileNotFoundError(
                    f"there is no folder {path!r} in data_dir={root!r}, which holds {content}: give it the folders "
                    f"{images!r} and {depths!r}, or name yours in the options images and depths"
                )
            files = {file: stamp for file, stamp in list_files(root, path).items() if _suffix(file) in suffixes}
            found[name] = _by_name(path, sorted(files))
            stamps.update(files)
        pairs[split] = _paired(root, found[images], found[depths])
    return DepthPairs(pairs, stamps)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _by_name(folder: str, files: Sequence[str]) -> dict[str, str]:
    """Files by their path inside the folder without suffix."""
    named: dict[str, str] = {}
    for file in files:
        name = str(PurePosixPath(file).relative_to(folder).with_suffix(""))
        if name in named:
            raise ValueError(f"{named[name]} and {file} have the same name up to their suffix: keep one of them")
        named[name] = file
    return named


def _paired(root: str, images: dict[str, str], depths: dict[str, str]) -> list[DepthPair]:
    lonely = {
        "images have no depth map": [images[name] for name in images if name not in depths],
        "depth maps have no image": [depths[name] for name in depths if name not in images],
    }
    found = [f"{len(files)} {what}: {name_first(files)}" for what, files in lonely.items() if files]
    if found or not images:
        problem = "; ".join(found) or f"no images ({', '.join(IMAGE_SUFFIXES)})"
        raise FileNotFoundError(
            f"in {root}, {problem}. The names of an image and its depth map must agree up to their suffix: "
            "images/a/0001.jpg and depth/a/0001.png"
        )
    return [DepthPair(images[name], depths[name]) for name in sorted(images)]


def check_pairs(root: str, pairs: Sequence[DepthPair], unit: str, whole: bool) -> None:
    """Look at the files before any time is spent on them.

    Args:
        root: folder that the paths are relative to.
        pairs: of one split.
        unit: one of `DEPTH_UNITS`.
        whole: whether to look for truncation in every picture, not only in a sample.

    Raises:
        OSError: a file cannot be decoded.
        ValueError: an image and its depth map differ in size, or depth is not what `depth_array` takes, or its
            typical distance cannot be one in this unit.
    """
    if whole:
        files = [os.path.join(root, path) for pair in pairs for path in (pair.image, pair.depth)]
        require_complete_images([file for file in files if _suffix(file) != ".npy"])
    medians = {}
    for pair in evenly_spaced(pairs):
        size = load_image(os.path.join(root, pair.image)).size
        metres = depth_array(root, pair.depth, unit)
        if metres.shape != size[::-1]:
            raise ValueError(
                f"{pair.image} is {size[0]} x {size[1]} but {pair.depth} is {metres.shape[1]} x {metres.shape[0]}: a "
                "depth map must be aligned with its image, pixel by pixel"
            )
        if (metres > 0).any():
            medians[pair.depth] = float(np.median(metres[metres > 0]))
    _require_unit(medians, [pair.depth for pair in pairs], unit)


def _require_unit(medians: dict[str, float], names: Sequence[str], unit: str) -> None:
    """Detect another unit by the typical distance in metres."""
    if not medians:
        raise ValueError(f"no valid pixel (positive and finite) in the depth maps {name_first(names)}")
    median = float(np.median(list(medians.values())))
    if not MIN_MEDIAN <= median <= MAX_MEDIAN:
        raise ValueError(
            f"read as {unit}, the depth maps {name_first(list(medians))} have a typical distance of {median:.4g} "
            f"metres, and {MIN_MEDIAN:g} to {MAX_MEDIAN:g} are possible; set depth_unit to one of {list(DEPTH_UNITS)}, "
            "or scale them"
        )


def depth_array(root: str, path: str, unit: str) -> np.ndarray:
    """Depth map (H, W) float32 in metres, 0 = invalid, of a picture of 16 or more bits per pixel or a NumPy file.

    Args:
        root: folder that the path is relative to.
        path: of the file; values that are not positive and finite are invalid.
        unit: "millimetres", "metres", or "inverse", which are 1 / metres.

    Raises:
        OSError: the file cannot be decoded.
        ValueError: it has several channels, or 8 bits.
    """
    file = os.path.join(root, path)
    values = _load_array(file) if _suffix(path) == ".npy" else np.asarray(load_image(file))
    values = values.squeeze()
    if values.ndim != 2 or values.dtype.kind not in "iuf" or values.dtype.itemsize < 2:
        raise ValueError(
            f"{path} has shape {values.shape} and dtype {values.dtype}, but a depth map is (height, width) numbers of "
            "at least 16 bits: a 16-bit PNG, a floating-point TIFF or PFM, or a .npy file, and no picture for the eye"
        )
    valid = np.isfinite(values) & (values > 0)
    numbers = np.where(valid, values, 1).astype(np.float64)
    metres = {"millimetres": numbers / 1000, "metres": numbers, "inverse": 1 / numbers}[unit]
    return np.where(valid, metres, 0).astype(np.float32)


def _load_array(file: str) -> np.ndarray:
    """A NumPy file, mapped: the size that a damaged one claims takes no memory."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # damaged headers raise anything
        reason = str(error).partition(". If you trust")[0]  # loading pickles would run code from the file
        raise OSError(f"{file} cannot be read as a NumPy file ({reason}); write it again with numpy.save") from error


def depth_value(root: str, path: str, unit: str) -> str | dict[str, bytes]:
    """What `datasets.Image` stores: the path of a 16-bit PNG of millimetres, else a floating-point TIFF of metres.

    Args:
        root: folder that the path is relative to.
        path: of the file.
        unit: as in `depth_array`.

    Raises:
        OSError, ValueError: as `depth_array`.
    """
    if unit == "millimetres" and _suffix(path) == ".png":
        file = os.path.join(root, path)
        with Image.open(file) as picture:
            if picture.mode.startswith("I"):
                return file
    buffer = io.BytesIO()
    Image.fromarray(depth_array(root, path, unit)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return {"bytes": buffer.getvalue()}
