"""`mocap`: a `datasets` builder for motion capture files (.bvh, or .amc with .asf) before virtual cameras.

    walks = datasets.load_dataset("mocap", data_dir="CMU/subjects", num_frames=81, validation=["35/*"])

The .amc files of CMU's database and the .bvh files of Bandai-Namco's need no further options. CMU's motions as .bvh
files need `scale=0.0564`, other skeletons `joints`.
"""

import fnmatch
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
from datasets.builder import Key

from . import (
    asf_files,
    bvh_files,
    camera_projection,
    depth_normals,
    mocap_clip,
    mocap_files,
    mocap_text,
    motion_rows,
    skeleton,
)
from .image_files import evenly_spaced, file_stamp, is_url, resolve
from .image_files_builder import SHARED_MODULES, ImageFilesBuilder, ImageFilesConfig
from .mocap_clip import check_joint_map, human_joints
from .mocap_files import MotionFile, find_motion_files, read_motion
from .motion_rows import MAX_FRAMES, clip_starts, filmed, motion_features
from .registration import source_hash
from .rooms_render import MAX_NUMBER, require_integer

CODE_HASH = source_hash(
    (
        *(sys.modules[__name__], asf_files, bvh_files, camera_projection, depth_normals, mocap_clip, mocap_files),
        *(mocap_text, motion_rows, skeleton, *SHARED_MODULES),
    )
)

FILES_PER_SHARD = 16
"""Files in one unit of work; `num_proc` and streaming workers share out whole shards."""

FILE_STRIDE = 10_000
"""Distance between the first indices of two files, which bounds the clips of one."""


@dataclass
class MocapConfig(ImageFilesConfig):
    """Which motions to read, and how.

    Args:
        data_dir: folder that holds .bvh files, or .amc files with the .asf file of their skeleton beside them, at any
            depth.
        num_frames: frames of each row, 1 to 10000, cut one after the other, the last to end with the file; shorter
            files give no row. None gives one row per file.
        fps: frames per second of the rows.
        scale: metres of one unit of the files; None is 0.01 for .bvh, and for .amc what the .asf file says.
        amc_fps: frames per second of .amc files, which do not say it.
        up_axis: "y" or "z", what points upwards in the files.
        joints: the files' name of each of Human3.6M's 17 joints, see `skeleton.JOINT_NAMES`; None knows CMU's and
            Bandai-Namco's skeletons.
        validation: patterns of paths in `data_dir`, such as "35/*", that form a split `validation` instead of `train`.
        seed: of cameras and noise, 0 or more.

    Raises:
        FileNotFoundError: if `data_dir` does not exist.
        TypeError: if an option is of the wrong type.
        ValueError: if an option is missing or out of range.
    """

    num_frames: int | None = 81
    fps: float = 50.0
    scale: float | None = None
    amc_fps: float = 120.0
    up_axis: str = "y"
    joints: dict[str, str] | None = None
    validation: list[str] | tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames is not None:
            require_integer("num_frames", self.num_frames, 1, MAX_FRAMES)
        require_integer("seed", self.seed, 0, MAX_NUMBER)
        _require_positive("fps", self.fps)
        _require_positive("amc_fps", self.amc_fps)
        if self.scale is not None:
            _require_positive("scale", self.scale)
        if self.up_axis not in ("y", "z"):
            raise ValueError(f'up_axis must be "y" or "z", got {self.up_axis!r}')
        if self.joints is not None:
            check_joint_map(self.joints)
        if not isinstance(self.validation, list | tuple) or not all(
            isinstance(pattern, str) for pattern in self.validation
        ):
            raise TypeError(f"validation must be a list of patterns of paths, got {self.validation!r}")
        if self.data_dir is None:
            raise ValueError(
                'mocap needs data_dir, a folder of .bvh or .amc files: load_dataset("mocap", data_dir="...")'
            )
        if is_url(self.data_dir) or not os.path.isdir(self.root()):
            raise FileNotFoundError(f"data_dir must be an existing local folder, got {self.data_dir!r}")

    def root(self) -> str:
        """Absolute path of `data_dir`."""
        return resolve(self.data_dir or "")

    @cached_property
    def files(self) -> list[MotionFile]:
        """The motions, listed once."""
        return find_motion_files(self.root())

    def splits(self) -> dict[str, list[tuple[int, MotionFile]]]:
        """Numbered files by split.

        Raises:
            ValueError: if a pattern of `validation` fits no file, or no file is left to train on.
        """
        for pattern in self.validation:
            if not any(fnmatch.fnmatchcase(file.path, pattern) for file in self.files):
                raise ValueError(f"validation: {pattern!r} fits none of {len(self.files)} files in {self.root()}")
        splits: dict[str, list[tuple[int, MotionFile]]] = {"train": [], "validation": []}
        for number, file in enumerate(self.files):
            held_out = any(fnmatch.fnmatchcase(file.path, pattern) for pattern in self.validation)
            splits["validation" if held_out else "train"].append((number, file))
        if not splits["train"]:
            raise ValueError(f"validation: {list(self.validation)} leave no file to train on")
        return {name: files for name, files in splits.items() if files}

    def sources(self) -> Iterable[Any]:
        """See `ImageFilesConfig.sources`."""
        paths = sorted({path for file in self.files for path in (file.path, file.skeleton) if path})
        options = (self.num_frames, self.fps, self.scale, self.amc_fps, self.up_axis, self.joints, self.seed)
        stamps = [(path, file_stamp(resolve(path, self.root()))) for path in paths]
        return [*options, *self.validation, self.root(), *stamps]


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0, got {value}")


class Mocap(ImageFilesBuilder):
    """Captured motions before virtual cameras that follow from the path of the file and the seed; one row per clip.

    Columns are those of `motion_features`: `action` is the path of the file in `data_dir` without its ending, `subject`
    the stem of the .asf file or the folder of the .bvh file, `index` the number of the file times 10 000 plus that of
    the clip.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = MocapConfig
    CODE_HASH = CODE_HASH
    config: MocapConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Captured motions before virtual cameras, with Human3.6M's 17 joints.",
            features=motion_features(datasets.Value("string"), self.config.num_frames),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        generators = []
        for split, files in self.config.splits().items():
            # Wrong options show at once, not after an hour.
            if not any(len(self._joints(file)) >= (self.config.num_frames or 1) for _, file in evenly_spaced(files, 3)):
                self._require_long_file(split, files)
            starts = range(0, len(files), FILES_PER_SHARD)
            shards = [files[start : start + FILES_PER_SHARD] for start in starts]
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"shards": shards}))
        return generators

    def _require_long_file(self, split: str, files: list[tuple[int, MotionFile]]) -> None:
        longest = 0
        for _, file in files:
            longest = max(longest, len(self._joints(file)))
            if longest >= (self.config.num_frames or 1):
                return
        raise ValueError(
            f"num_frames: no file of the split {split} has {self.config.num_frames} frames at {self.config.fps:g} a "
            f"second; the longest has {longest}"
        )

    def _joints(self, file: MotionFile) -> np.ndarray:
        """(N, 17, 3) metres in the world, z up."""
        config = self.config
        clip = read_motion(config.root(), file, config.amc_fps)
        return human_joints(clip, config.fps, config.joints, config.scale, config.up_axis)

    def _generate_examples(self, shards: list[list[tuple[int, MotionFile]]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for shard, files in enumerate(shards):
            offset = 0
            for number, file in files:
                joints = self._joints(file)
                for clip, (start, stop) in enumerate(clip_starts(len(joints), self.config.num_frames)):
                    name = int.from_bytes(hashlib.sha256(file.path.encode()).digest()[:8], "big")
                    rng = np.random.default_rng([self.config.seed, name, clip])
                    row = {"index": number * FILE_STRIDE + clip, "action": file.action, "subject": file.subject}
                    yield Key(shard, offset), {**row, "fps": self.config.fps, **filmed(joints[start:stop], rng)}
                    offset += 1
