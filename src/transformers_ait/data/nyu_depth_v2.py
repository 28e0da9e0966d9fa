"""`nyu_depth_v2`: a `datasets` builder for NYU Depth v2, from the usual folders or the official labelled file.

After `import transformers_ait.data`:

    frames = datasets.load_dataset("nyu_depth_v2", data_dir="nyu_depth_v2", num_held_out=145)
    frames = datasets.load_dataset("nyu_depth_v2", data_dir="nyu_depth_v2", train_list="train.txt")
    frames = datasets.load_dataset("nyu_depth_v2", labelled_mat="nyu_depth_v2_labeled.mat", splits_mat="splits.mat")
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from datasets.builder import Key

from . import nyu_files, nyu_labelled
from .image_files import NamedImage, file_stamp, is_url, parent_name, resolve
from .image_files_builder import ROWS_PER_SHARD, SHARED_MODULES, ImageFilesBuilder, ImageFilesConfig
from .nyu_files import FrameFiles, NYUFiles, check_frames, find_files
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

CODE_HASH = source_hash((sys.modules[__name__], nyu_files, nyu_labelled, *SHARED_MODULES))

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
        labelled_mat: official `nyu_depth_v2_labeled.mat`, read in place of the folders; needs h5py and scipy.
        splits_mat: official `splits.mat`; None takes the one beside `labelled_mat`.
        labelled_depth: "depths", with holes filled, or "rawDepths", as measured.
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

    def files(self) -> NYUFiles:
        """List the folders now."""
        lists = {"train": self.train_list, "test": self.test_list}
        return find_files(self.root(), {split: resolve(path, self.root()) for split, path in lists.items() if path})

    def sources(self) -> Iterable[Any]:
        """See `ImageFilesConfig.sources`."""
        held_out = (self.num_held_out, self.held_out_seed)
        if mat_file := self.mat_file():
            paths = (mat_file, self.splits_file(mat_file))
            missing = [path for path in paths if not os.path.isfile(path)]
            if missing:
                raise FileNotFoundError(f"{missing[0]} does not exist: labelled_mat and splits_mat are both needed")
            return [*held_out, self.labelled_depth, *((path, file_stamp(path)) for path in paths)]
        files = self.files()
        return [*held_out, self.root(), files.frames, sorted(files.stamps.items())]


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
        scene: name of the scene, the folder that holds the frame.
        name: path of the image relative to `data_dir` (labelled file: `<file>/<number>`, counting from 0).
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = NYUDepthV2Config
    CODE_HASH = CODE_HASH
    config: NYUDepthV2Config

    def _info(self) -> datasets.DatasetInfo:
        text = datasets.Value("string")
        columns = {"image": NamedImage(), "depth": NamedImage(), "scene": text, "name": text}
        return datasets.DatasetInfo(
            description="NYU Depth v2: indoor images with aligned depth in millimetres.",
            homepage="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
            features=datasets.Features(columns),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        splits: dict[str, Sequence[Frame]] = {}
        if mat_file := self.config.mat_file():
            source = mat_file
            numbers = read_splits(self.config.splits_file(mat_file))
            check_labelled(mat_file, numbers, self.config.labelled_depth)
            splits.update(numbers)
        else:
            source = self.config.root()
            for split, frames in self.config.files().frames.items():
                # Streaming starts at once: it looks at a sample only.
                check_frames(source, frames, whole=not dl_manager.is_streaming)
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
            rows = _folder_rows(source, frames) if isinstance(frames[0], FrameFiles) else self._mat_rows(source, frames)
            for offset, row in enumerate(rows):
                yield Key(shard, offset), row

    def _mat_rows(self, mat_file: str, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for frame in read_frames(mat_file, numbers, self.config.labelled_depth):
            yield {
                "image": {"bytes": encode_png(frame.image)},
                "depth": {"bytes": encode_png(frame.depth)},
                "scene": frame.scene,
                "name": f"{os.path.basename(mat_file)}/{frame.number:05d}",
            }


def _folder_rows(root: str, frames: Sequence[FrameFiles]) -> Iterator[dict[str, Any]]:
    for frame in frames:
        yield {
            "image": os.path.join(root, frame.image),
            "depth": os.path.join(root, frame.depth),
            "scene": parent_name(frame.image),
            "name": frame.image,
        }
