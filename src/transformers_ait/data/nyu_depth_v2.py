"""`nyu_depth_v2`: a `datasets` builder for NYU Depth v2, from the usual folders or the official labelled file.

After `import transformers_ait.data`:

    frames = datasets.load_dataset("nyu_depth_v2", data_dir="nyu_depth_v2", num_held_out=145)
    frames = datasets.load_dataset("nyu_depth_v2", data_dir="nyu_depth_v2", train_list="train.txt", normals=True)
    frames = datasets.load_dataset("nyu_depth_v2", labelled_mat="nyu_depth_v2_labeled.mat", splits_mat="splits.mat")
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from datasets.builder import Key

from . import depth_normals, mat_files, nyu_camera, nyu_classes, nyu_files, nyu_labelled
from .image_files import NamedImage, file_stamp, is_url, load_image, parent_name, resolve
from .image_files_builder import ROWS_PER_SHARD, SHARED_MODULES, ImageFilesBuilder, ImageFilesConfig
from .nyu_camera import normals_of_frame
from .nyu_classes import NYU40_CLASSES
from .nyu_files import FrameFiles, NYUFiles, check_frames, depth_array, find_files, read_labels
from .nyu_labelled import (
    DEPTH_VARIABLES,
    LABELLED_NAME,
    SPLITS_NAME,
    check_labelled,
    encode_png,
    read_frames,
    read_splits,
)
from .registration import source_hash

CODE_HASH = source_hash(
    (sys.modules[__name__], depth_normals, mat_files, nyu_camera, nyu_classes, nyu_files, nyu_labelled, *SHARED_MODULES)
)

Frame = FrameFiles | int
"""Files of a frame, or its number in the labelled file."""


@dataclass
class NYUDepthV2Config(ImageFilesConfig):
    """Where NYU Depth v2 lies and how it is split. Relative paths of files are taken from `data_dir` where it is given.

    Args:
        data_dir: folder with `sync/<scene>/rgb_*.jpg` and `sync_depth_*.png` (train) and the same in
            `official_splits/test/<scene>/` (test), or with the labelled file; needed unless `labelled_mat` is given.
        train_list: text file with lines `rgb depth focal`; the train split then holds these frames in this order. Paths
            start at `data_dir` or at `sync`; a leading slash is dropped, the focal length ignored.
        test_list: the same for the test split; paths start at `data_dir` or at `official_splits/test`.
        labelled_mat: official `nyu_depth_v2_labeled.mat`, read in place of the folders; needs h5py.
        splits_mat: official `splits.mat`; None takes the one beside `labelled_mat`.
        labelled_depth: "depths", with holes filled, or "rawDepths", as measured.
        normals: whether to compute a column `normals` from depth, which takes 0.2 s and 0.3 MB per frame.
        num_held_out: number of training frames that form a split `validation` instead; 0 = no such split.
        held_out_seed: which frames these are. Frames of one scene may stand on both sides.

    Raises:
        FileNotFoundError: if a folder or file does not exist.
        TypeError: if an option is of the wrong type.
        ValueError: if an option is missing or out of range.
    """

    train_list: str | None = None
    test_list: str | None = None
    labelled_mat: str | None = None
    splits_mat: str | None = None
    labelled_depth: str = "depths"
    normals: bool = False
    num_held_out: int = 0
    held_out_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_held_out", "held_out_seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if not isinstance(self.normals, bool):
            raise TypeError(f"normals must be True or False, got {self.normals!r}")
        if self.labelled_depth not in DEPTH_VARIABLES:
            raise ValueError(f"labelled_depth must be one of {DEPTH_VARIABLES}, got {self.labelled_depth!r}")
        if self.data_dir is None and self.labelled_mat is None:
            raise ValueError(
                "nyu_depth_v2 needs data_dir, the folder that holds sync/ and official_splits/, or labelled_mat, the "
                'official .mat file: load_dataset("nyu_depth_v2", data_dir="...")'
            )
        if self.data_dir is not None and (is_url(self.data_dir) or not os.path.isdir(self.root())):
            raise FileNotFoundError(f"data_dir must be an existing local folder, got {self.data_dir!r}")
        if self.mat_file() and (self.train_list or self.test_list):
            raise ValueError("train_list and test_list choose frames of the folders; the labelled file has splits_mat")

    def root(self) -> str:
        """Absolute path of `data_dir`."""
        return resolve(self.data_dir or "")

    def mat_file(self) -> str | None:
        """Absolute path of the labelled file: as given, or the one in a `data_dir` without the usual folders."""
        if self.labelled_mat is not None:
            return resolve(self.labelled_mat, self.root())
        inside = resolve(LABELLED_NAME, self.root())
        folders = [os.path.join(self.root(), folder) for folder in nyu_files.SPLIT_FOLDERS.values()]
        return inside if os.path.isfile(inside) and not any(map(os.path.isdir, folders)) else None

    def splits_file(self, mat_file: str) -> str:
        """Absolute path of `splits.mat`."""
        if self.splits_mat is not None:
            return resolve(self.splits_mat, self.root())
        return os.path.join(os.path.dirname(mat_file), SPLITS_NAME)

    @cached_property
    def files(self) -> NYUFiles:
        """What the folders hold, listed once, so that the cache folder, the columns and the rows agree."""
        lists = {"train": self.train_list, "test": self.test_list}
        return find_files(self.root(), {split: resolve(path, self.root()) for split, path in lists.items() if path})

    def sources(self) -> Iterable[Any]:
        """See `ImageFilesConfig.sources`."""
        options = (self.normals, self.num_held_out, self.held_out_seed)
        if mat_file := self.mat_file():
            paths = (mat_file, self.splits_file(mat_file))
            missing = [path for path in paths if not os.path.isfile(path)]
            if missing:
                raise FileNotFoundError(f"{missing[0]} does not exist: labelled_mat and splits_mat are both needed")
            return [*options, self.labelled_depth, *((path, file_stamp(path)) for path in paths)]
        return [*options, self.root(), self.files.frames, sorted(self.files.stamps.items())]


def hold_out(frames: Sequence[Frame], names: Sequence[str], count: int, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Divide frames into those to train on and those held out, both in their order.

    The choice depends on the names and the seed alone: not on the order, the machine or a version of a library.

    Args:
        frames: all frames.
        names: their names.
        count: number of frames to hold out.
        seed: picks them.

    Raises:
        ValueError: if no frame would be left to train on.
    """
    if count >= len(frames):
        raise ValueError(f"num_held_out must be below the number of training frames, {len(frames)}, got {count}")
    ranks = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
    chosen = set(sorted(range(len(frames)), key=ranks.__getitem__)[:count])
    kept = [frame for index, frame in enumerate(frames) if index not in chosen]
    return kept, [frame for index, frame in enumerate(frames) if index in chosen]


class NYUDepthV2(ImageFilesBuilder):
    """Indoor frames with depth; one row per frame, nothing decoded before it is asked for.

    Columns:
        image: the JPEG file (PNG bytes from the labelled file), RGB.
        depth: 16-bit PNG, millimetres, 0 = invalid.
        semantic: 8-bit PNG, index in `NYU40_CLASSES`, 255 = invalid; in splits with `labels40_*.png` beside all images.
            Such a file holds the class - 1, and 39 for both `otherprop` and unlabelled pixels.
        normals: with the option `normals`: PNG; n = value / 127.5 - 1, x right, y down, z ahead, towards the camera;
            (128, 128, 128) = invalid. See `normals_from_depth`.
        scene: name of the scene, the folder that holds the frame.
        name: path of the image relative to `data_dir` (labelled file: `<file>/<number>`, counting from 0).
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = NYUDepthV2Config
    CODE_HASH = CODE_HASH
    config: NYUDepthV2Config

    def _info(self) -> datasets.DatasetInfo:
        text = datasets.Value("string")
        pictures = ["image", "depth", *["semantic"] * self._any_labels(), *["normals"] * self.config.normals]
        columns = {**{name: NamedImage() for name in pictures}, "scene": text, "name": text}
        return datasets.DatasetInfo(
            description="NYU Depth v2: indoor images with aligned depth in millimetres. Semantic labels: "
            f"{', '.join(NYU40_CLASSES)}.",
            homepage="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
            features=datasets.Features(columns),
        )

    def _any_labels(self) -> bool:
        """Whether a split has labels; the labelled file is read without its own, which are not NYU40."""
        splits = {} if self.config.mat_file() else self.config.files.frames
        return any(frames[0].labels is not None for frames in splits.values())

    def _as_dataset(self, *args: Any, **kwargs: Any) -> datasets.Dataset:
        rows = super()._as_dataset(*args, **kwargs)
        if "semantic" in rows.column_names and rows.data.column("semantic").null_count == len(rows):
            return rows.remove_columns("semantic")
        return rows

    def _as_streaming_dataset_single(self, splits_generator: Any, *args: Any, **kwargs: Any) -> Any:
        rows = super()._as_streaming_dataset_single(splits_generator, *args, **kwargs)
        if "semantic" not in self.info.features or splits_generator.gen_kwargs["shards"][0][0].labels is not None:
            return rows
        return rows.remove_columns("semantic")

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        splits: dict[str, Sequence[Frame]] = {}
        if mat_file := self.config.mat_file():
            source = mat_file
            numbers = read_splits(self.config.splits_file(mat_file))
            check_labelled(mat_file, numbers, self.config.labelled_depth)
            splits.update(numbers)
        else:
            source = self.config.root()
            for split, frames in self.config.files.frames.items():
                # Streaming starts at once: it looks at a sample only.
                check_frames(source, frames, whole=not dl_manager.is_streaming, normals=self.config.normals)
                splits[split] = frames
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={
                    "source": source,
                    "shards": [
                        frames[start : start + ROWS_PER_SHARD] for start in range(0, len(frames), ROWS_PER_SHARD)
                    ],
                },
            )
            for split, frames in self._held_out(splits).items()
        ]

    def _held_out(self, splits: dict[str, Sequence[Frame]]) -> dict[str, Sequence[Frame]]:
        """The splits with `validation` taken out of `train`, where that is asked for."""
        count, seed = self.config.num_held_out, self.config.held_out_seed
        if not count:
            return splits
        frames = splits.get("train", [])
        names = [frame.image if isinstance(frame, FrameFiles) else f"{frame:05d}" for frame in frames]
        train, validation = hold_out(frames, names, count, seed)
        return {**splits, "train": train, "validation": validation}

    def _generate_examples(self, source: str, shards: list[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for shard, frames in enumerate(shards):
            is_folder = isinstance(frames[0], FrameFiles)
            rows = self._folder_rows(source, frames) if is_folder else self._mat_rows(source, frames)
            for offset, row in enumerate(rows):
                yield Key(shard, offset), row

    def _mat_rows(self, mat_file: str, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for frame in read_frames(mat_file, numbers, self.config.labelled_depth):
            name = f"{os.path.basename(mat_file)}/{frame.number:05d}"
            row = {"image": _png(frame.image), "depth": _png(frame.depth), "scene": frame.scene, "name": name}
            if self.config.normals:
                row["normals"] = _png(normals_of_frame(frame.depth, name))
            yield row

    def _folder_rows(self, root: str, frames: Sequence[FrameFiles]) -> Iterator[dict[str, Any]]:
        for frame in frames:
            row: dict[str, Any] = {
                "image": os.path.join(root, frame.image),
                "depth": os.path.join(root, frame.depth),
                "scene": parent_name(frame.image),
                "name": frame.image,
            }
            if "semantic" in self.info.features:
                row["semantic"] = None if frame.labels is None else _png(read_labels(root, frame))
            if self.config.normals:
                depth = depth_array(load_image(row["depth"]), frame.depth)
                row["normals"] = _png(normals_of_frame(depth, frame.depth))
            yield row


def _png(pixels: np.ndarray) -> dict[str, bytes]:
    """Pixels as `datasets.Image` stores them."""
    return {"bytes": encode_png(pixels)}
