"""The official labelled file of NYU Depth v2 (`nyu_depth_v2_labeled.mat`, MATLAB v7.3) and its split."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .image_files import evenly_spaced
from .mat_files import read_matrices
from .nyu_files import require_millimetres

LABELLED_NAME = "nyu_depth_v2_labeled.mat"
SPLITS_NAME = "splits.mat"
SPLIT_VARIABLES = {"train": "trainNdxs", "test": "testNdxs"}
DEPTH_VARIABLES = ("depths", "rawDepths")


@dataclass(frozen=True)
class LabelledFrame:
    """One frame of the labelled file.

    `image` is (H, W, 3) uint8, `depth` (H, W) uint16 millimetres with 0 = invalid; `number` counts from 0.
    """

    number: int
    scene: str
    image: np.ndarray
    depth: np.ndarray


def _open(path: str) -> Any:
    """The file, opened with h5py."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"reading {path} (MATLAB v7.3) needs h5py: pip install h5py") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"labelled_mat: {path} does not exist (a relative path is taken from data_dir)")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise OSError(f"{path} is no complete MATLAB v7.3 (HDF5) file ({error}); download it again") from error


def read_splits(path: str) -> dict[str, list[int]]:
    """Frame numbers, from 0, of the official split.

    Args:
        path: `splits.mat`, with `trainNdxs` and `testNdxs`, which count from 1.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is no such file, or names no frames.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"splits_mat: {path} does not exist; it is published beside {LABELLED_NAME}")
    variables = read_matrices(path)
    if not set(SPLIT_VARIABLES.values()) <= set(variables):
        raise ValueError(f"{path} is no splits.mat with trainNdxs and testNdxs: it has {sorted(variables)}")
    splits: dict[str, list[int]] = {}
    for split, name in SPLIT_VARIABLES.items():
        numbers = variables[name].ravel()
        if not np.array_equal(numbers, np.floor(numbers)) or not np.isfinite(numbers).all():
            raise ValueError(f"{path} is no splits.mat: {name} must hold whole numbers of frames")
        splits[split] = [int(number) - 1 for number in numbers]
    if not any(splits.values()):
        raise ValueError(f"{path} names no frames in trainNdxs and testNdxs")
    return {split: sorted(numbers) for split, numbers in splits.items() if numbers}


def _require_variables(file: Any, path: str, depth_variable: str) -> None:
    for name in ("images", depth_variable):
        if name not in file:
            raise ValueError(f"{path} has no variable {name!r}; it holds {sorted(file)}")
    images, depths = file["images"].shape, file[depth_variable].shape
    if len(images) != 4 or images[1] != 3 or (images[0], *images[2:]) != depths:
        raise ValueError(
            f"{path}: expected images of shape (frames, 3, width, height) and {depth_variable} of (frames, width, "
            f"height), got {images} and {depths}"
        )


def check_labelled(path: str, splits: dict[str, list[int]], depth_variable: str) -> None:
    """Look at the file before any time is spent on it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it lacks variables or frames, or depth is not in metres.
    """
    with _open(path) as file:
        _require_variables(file, path, depth_variable)
        count = len(file["images"])
    for split, numbers in splits.items():
        outside = [number + 1 for number in numbers if not 0 <= number < count]
        if outside:
            raise ValueError(
                f"{SPLIT_VARIABLES[split]} names frame {outside[0]} ({len(outside)} such), but {path} has {count} "
                "frames: the two files do not belong together"
            )
        frames = read_frames(path, evenly_spaced(numbers, 4), depth_variable)
        require_millimetres({f"{os.path.basename(path)}/{frame.number:05d}": frame.depth for frame in frames})


def read_frames(path: str, numbers: Sequence[int], depth_variable: str) -> Iterator[LabelledFrame]:
    """Read frames one by one.

    Args:
        path: the labelled file.
        numbers: frame numbers, from 0.
        depth_variable: "depths" (holes filled) or "rawDepths" (as measured, aligned with the image).
    """
    with _open(path) as file:
        images, depths = file["images"], file[depth_variable]
        for number in numbers:
            # MATLAB writes columns first, so that every axis comes reversed.
            metres = np.nan_to_num(depths[number].T.astype(np.float64), posinf=0)
            millimetres = np.clip(np.rint(1000 * metres), 0, np.iinfo(np.uint16).max).astype(np.uint16)
            yield LabelledFrame(number, _scene(file, number), images[number].transpose(2, 1, 0), millimetres)


def _scene(file: Any, number: int) -> str:
    """Entry of the cell array of scene names; empty where the file has none."""
    if "scenes" not in file:
        return ""
    codes = file[file["scenes"][0, number]][()]
    return "".join(chr(code) for code in np.ravel(codes))


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8, (H, W) uint8 or (H, W) uint16 to the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
