"""Frames of NYU Depth v2 in the usual folder layout, and checks of their depth maps and labels."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .image_files import (
    Stamp,
    evenly_spaced,
    list_files,
    load_image,
    name_first,
    require_complete_images,
    require_files,
)
from .nyu_camera import require_camera_size
from .nyu_classes import semantic_array

SPLIT_FOLDERS = {"train": "sync", "test": "official_splits/test"}
RGB_NAME = re.compile(r"rgb_([^/]+)\.jpg")
DEPTH_NAME = re.compile(r"sync_depth_([^/]+)\.png")

MIN_MEDIAN, MAX_MEDIAN = 300, 10_000
"""Millimetres between which the typical distance in a room lies; the sensor sees no farther than 10 m."""

LARGEST_METRES = 20
"""A map that never exceeds this was written in metres."""


@dataclass(frozen=True)
class FrameFiles:
    """One frame; paths relative to the root folder, with "/"; `labels` is None where its split has no labels."""

    image: str
    depth: str
    labels: str | None = None

    def paths(self) -> tuple[str, ...]:
        """All its files."""
        return (self.image, self.depth) if self.labels is None else (self.image, self.depth, self.labels)


@dataclass(frozen=True)
class NYUFiles:
    """Frames of each split that has any, in the order of their names or of the list, and the stamps of their files."""

    frames: dict[str, list[FrameFiles]]
    stamps: dict[str, Stamp]


def find_files(root: str, lists: dict[str, str]) -> NYUFiles:
    """All frames below a folder; those of a split have labels if `labels40_*.png` lie beside all of its images.

    Args:
        root: folder that holds `sync` and `official_splits`.
        lists: list file by split, for splits that shall hold only the frames of a list.

    Raises:
        FileNotFoundError: if a list, an image or a depth map is missing, if only some frames of a split have labels, or
            if there is no frame at all.
        ValueError: if a list is empty or a line of it is not understood.
    """
    frames: dict[str, list[FrameFiles]] = {}
    stamps: dict[str, Stamp] = {}
    for split, folder in SPLIT_FOLDERS.items():
        found, found_stamps = _listed(root, folder, lists[split]) if split in lists else _paired(root, folder)
        if found:
            frames[split] = found
            stamps.update(found_stamps)
    if not frames:
        inside = name_first(sorted(os.listdir(root))) or "an empty folder"
        raise FileNotFoundError(
            f"no frames in data_dir={root!r}: expected sync/<scene>/rgb_*.jpg with sync_depth_*.png, or the same in "
            f"official_splits/test/<scene>/, or nyu_depth_v2_labeled.mat; found {inside}"
        )
    return NYUFiles(frames, stamps)


def _paired(root: str, folder: str) -> tuple[list[FrameFiles], dict[str, Stamp]]:
    """Images and depth maps of the same number in the same scene."""
    listing = list_files(root, folder)
    images, depths = {}, {}
    for path in listing:
        scene, _, name = path.rpartition("/")
        if match := RGB_NAME.fullmatch(name):
            images[scene, match[1]] = path
        elif match := DEPTH_NAME.fullmatch(name):
            depths[scene, match[1]] = path
    keys = sorted(images.keys() | depths.keys())
    missing = [f"{scene}/sync_depth_{number}.png" for scene, number in keys if (scene, number) not in depths]
    missing += [f"{scene}/rgb_{number}.jpg" for scene, number in keys if (scene, number) not in images]
    fix = "Every rgb_*.jpg needs its sync_depth_*.png, and the other way round: copy them, or name the frames in a list"
    require_files(missing, 2 * len(keys), root, fix)
    frames = _with_labels(root, [FrameFiles(images[key], depths[key]) for key in keys], listing)
    return frames, {path: listing[path] for frame in frames for path in frame.paths()}


def _with_labels(root: str, frames: list[FrameFiles], listing: dict[str, Stamp]) -> list[FrameFiles]:
    """The frames of a split with their label files, where it has any."""
    paths = [_labels_path(frame.image) for frame in frames]
    missing = [path for path in paths if path not in listing]
    if len(missing) == len(paths):
        return frames
    fix = (
        "A split has labels for all of its frames or for none: copy them, name the frames in a list, or move them away"
    )
    require_files(missing, len(paths), root, fix)
    return [replace(frame, labels=path) for frame, path in zip(frames, paths, strict=True)]


def _labels_path(image: str) -> str:
    folder, slash, name = image.rpartition("/")
    return f"{folder}{slash}labels40_{os.path.splitext(name)[0].removeprefix('rgb_')}.png"


def read_list(path: str) -> list[FrameFiles]:
    """Read lines of `rgb depth focal`, as depth repositories ship them; leading slashes are dropped.

    Raises:
        FileNotFoundError: if the list does not exist.
        ValueError: if it is empty, or a line has fewer than two columns, or it is no text.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"list file {path} does not exist (a relative path is taken from data_dir)")
    frames = []
    with open(path, "rb") as file:
        content = file.read()
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): give the list of lines 'rgb depth focal'") from error
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if len(columns) == 1 or "\0" in line:
            raise ValueError(f"{path}, line {number}: expected 'rgb depth focal', got {line.strip()!r:.200}")
        if columns:
            frames.append(FrameFiles(columns[0].lstrip("/"), columns[1].lstrip("/")))
    if not frames:
        raise ValueError(f"{path} names no frames; leave the option out to use every frame of the folder")
    return frames


def _listed(root: str, folder: str, list_file: str) -> tuple[list[FrameFiles], dict[str, Stamp]]:
    """Frames of a list, whose paths start at the root or, in other repositories, at the split's folder."""
    frames = read_list(list_file)
    if not any(os.path.isfile(os.path.join(root, frame.image)) for frame in frames[:100]):
        inside = [FrameFiles(f"{folder}/{frame.image}", f"{folder}/{frame.depth}") for frame in frames]
        if any(os.path.isfile(os.path.join(root, frame.image)) for frame in inside[:100]):
            frames = inside
    paths = [path for frame in frames for path in frame.paths()]
    listing: dict[str, Stamp] = {}
    for parent in sorted({path.rpartition("/")[0] for path in paths}):
        listing.update(list_files(root, parent, recursive=False))
    missing = [path for path in paths if path not in listing]
    require_files(missing, len(paths), root, f"They stand in {list_file}, whose paths must start at data_dir")
    frames = _with_labels(root, frames, listing)
    return frames, {path: listing[path] for frame in frames for path in frame.paths()}


def check_frames(root: str, frames: Sequence[FrameFiles], whole: bool, normals: bool = False) -> None:
    """Look at the files before any time is spent on them.

    Args:
        root: folder that the paths are relative to.
        frames: frames of one split.
        whole: whether to look for truncation in every file, not only in a sample.
        normals: whether normals will be computed from depth.

    Raises:
        OSError: if a file cannot be decoded.
        ValueError: if depth maps are not 16-bit millimetres, labels are not 8-bit class ids, one of them is not of its
            image's size, or normals are asked for and the camera is not known at this size.
    """
    if whole:
        require_complete_images([os.path.join(root, path) for frame in frames for path in frame.paths()])
    depths = {}
    for frame in evenly_spaced(frames):
        image, depth = (load_image(os.path.join(root, path)) for path in (frame.image, frame.depth))
        depths[frame.depth] = depth_array(depth, frame.depth)
        _require_size(frame.depth, depth.size, frame.image, image.size)
        if frame.labels is not None:
            read_labels(root, frame)
        if normals:
            require_camera_size(depths[frame.depth], frame.depth)
    require_millimetres(depths)


def read_labels(root: str, frame: FrameFiles) -> np.ndarray:
    """Class ids (H, W) of a frame that has labels; see `semantic_array`.

    Raises:
        OSError: if a file cannot be decoded.
        ValueError: if the labels are not of the image's size, or no 8-bit class ids.
    """
    name = str(frame.labels)
    labels = load_image(os.path.join(root, name))
    with Image.open(os.path.join(root, frame.image)) as image:
        _require_size(name, labels.size, frame.image, image.size)
    return semantic_array(labels, name)


def _require_size(name: str, size: tuple[int, int], image: str, expected: tuple[int, int]) -> None:
    if size != expected:
        raise ValueError(
            f"{image} is {expected[0]} x {expected[1]} but {name} is {size[0]} x {size[1]}: depth and labels must be "
            "aligned with their image, pixel by pixel"
        )


def depth_array(depth: Image.Image, name: str) -> np.ndarray:
    """Decoded depth map to (H, W) uint16 millimetres.

    Raises:
        ValueError: if the image does not have one channel of 16 bits.
    """
    if not depth.mode.startswith("I;16"):
        raise ValueError(
            f"depth must be a 16-bit PNG in millimetres, but {name} has mode {depth.mode}"
            f"{' (8 bits)' if depth.mode in ('L', 'P', 'RGB', 'RGBA') else ''}: write millimetres as uint16, and read "
            "16-bit files without converting them (OpenCV: IMREAD_UNCHANGED)"
        )
    return np.asarray(depth).astype(np.uint16)


def require_millimetres(depths: dict[str, np.ndarray]) -> None:
    """Detect another unit by the range of the values.

    Args:
        depths: (H, W) maps by name, 0 = invalid.

    Raises:
        ValueError: if no map has a valid pixel, or the typical value does not fit a room in millimetres.
    """
    valid = [depth[depth > 0] for depth in depths.values()]
    medians = [float(np.median(values)) for values in valid if values.size]
    names = name_first(list(depths))
    if not medians:
        raise ValueError(f"no valid pixel (all 0) in the depth maps {names}: was 16-bit depth read or scaled as 8-bit?")
    median, largest = float(np.median(medians)), max(int(values.max()) for values in valid if values.size)
    if MIN_MEDIAN <= median <= MAX_MEDIAN:
        return
    if largest <= LARGEST_METRES:
        fix = "these look like metres: multiply by 1000 before writing uint16"
    elif median < MIN_MEDIAN:
        fix = "too small: were they centimetres (multiply by 10) or 8-bit values (write the original depth as uint16)?"
    else:
        fix = "too large: were they scaled, as with 5000 per metre (divide by 5) or to fill 16 bits?"
    raise ValueError(
        f"depth must be millimetres, typically {MIN_MEDIAN} to {MAX_MEDIAN}, but in {names} the median is {median:g} "
        f"and the largest value {largest}; {fix}"
    )
